"""What vLLM 0.29.0 streams, as its own classes write it."""

_TURN = 'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1796032835,"model":"qwen","choices":'
_TEXT = 'data: {"id":"cmpl-1","object":"text_completion","created":1796032835,"model":"qwen","choices":'
_OPENING = '[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
_USAGE = '[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}\n\n'
_DONE = "data: [DONE]\n\n"

CHAT = (
    _TURN + _OPENING + '"prompt_token_ids":null,"prompt_text":null}\n\n',
    _TURN + '[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n',
    _TURN + '[{"index":0,"delta":{"content":"lo"},"logprobs":null,"finish_reason":"stop","stop_reason":null,'
    '"token_ids":null}]}\n\n',
    _TURN + _USAGE,
    _DONE,
)
TEXT = (
    _TEXT + '[{"index":0,"text":" upon","logprobs":null,"finish_reason":null,"stop_reason":null,'
    '"prompt_token_ids":null,"token_ids":null}]}\n\n',
    _TEXT + '[{"index":0,"text":" a","logprobs":null,"finish_reason":"length","stop_reason":null,'
    '"prompt_token_ids":null,"token_ids":null}]}\n\n',
    _TEXT + _USAGE,
    _DONE,
)
BROKEN = (
    *CHAT[:2],
    'data: {"error": {"message": "boom", "type": "InternalServerError", "param": null, "code": 500}}\n\n',
    _DONE,
)
TOO_LONG = {
    "error": {
        "message": "This model's maximum context length is 1024 tokens. However, you requested 512 output tokens and "
        "your prompt contains 600 input tokens, for a total of 1112 tokens. Please reduce the length of the input "
        "prompt or the number of requested output tokens. (parameter=input_tokens, value=600)",
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    }
}
INVALID = {"error": {"message": "roles must alternate", "type": "BadRequestError", "param": None, "code": 400}}
