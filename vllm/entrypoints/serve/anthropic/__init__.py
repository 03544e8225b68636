"""Anthropic's Messages API, in text: /v1/messages.

    input.py     blocks in, a chat out
    events.py    a message as a stream
    endpoints.py the endpoints
"""
