"""OpenAI's Responses API, in text: /v1/responses.

    input.py     items in, a conversation out
    record.py    a response as it comes to be
    store.py     the responses that are kept
    events.py    a response as a stream
    log.py       the stream of a response in the background
    endpoints.py the endpoints
What the API has beside text, tools and structured output above all, is refused by name.
"""
