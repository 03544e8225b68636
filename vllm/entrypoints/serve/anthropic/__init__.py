"""Anthropic's Messages API, in text: /v1/messages.

    input.py     blocks in, a chat out
    events.py    a message as a stream
    endpoints.py the endpoints
What the API has beside text, tools and thinking above all, is refused by name.
"""
