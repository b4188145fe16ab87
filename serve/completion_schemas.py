"""What goes over HTTP for completions: OpenAI's requests and answers, as far as the language model can do them.

A field of OpenAI's that is not here is refused by its name, instead of being ignored.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from serve.generation import MODEL, FinishReason, Message, Question
from serve.problems import Problem
from serve.schemas import HttpModel

MAX_MESSAGES = 256
MAX_STOPS = 4
MAX_SEED = 2**32 - 2
"""llama.cpp's seeds have 32 bits, and the largest means a random one."""
LEGACY_MAX_TOKENS = 16
"""OpenAI's default for `/v1/completions`."""

MAX_STOP = 256
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP}
_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}

Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP)]
Stops = Annotated[
    tuple[Stop, ...],
    Field(max_length=MAX_STOPS),
    BeforeValidator(lambda sent: [sent] if isinstance(sent, str) else sent),
    WithJsonSchema({"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]}),
]
"""One text or several; as one type, so that an error names the field and not the variant of a union."""
Penalty = Annotated[float, Field(ge=-2, le=2)]
Tokens = Annotated[int, Field(strict=True, ge=1)]


class StreamOptions(HttpModel):
    """How a completion is streamed."""

    include_usage: bool = False
    """Whether a last chunk without choices tells the numbers of tokens."""


class Sampling(HttpModel):
    """What both kinds of completion have in common."""

    model: str
    """`smollm2-135m-instruct`, or what `/v1/models` names where another one is configured."""

    max_tokens: Tokens | None = None
    """Most tokens to write; the endpoint has a limit of its own."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 always takes the most probable token."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the most probable tokens that have this probability together are drawn from."""

    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    seed: Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)] | None = None
    """The same seed and request give the same completion as a rule. What else is being decoded at the moment can change
    the last bits of a probability."""

    stop: Stops | None = None
    """Texts, four at most, before any of which the completion ends."""

    n: Annotated[Literal[1], Field(description="One completion for each request.")] = 1
    stream: Annotated[bool, Field(strict=True)] = False
    """Whether the completion comes as server-sent events while it is written."""

    stream_options: StreamOptions | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def question(self, prompt: str | tuple[Message, ...], max_tokens: int) -> Question:
        """This request for the language model."""
        return Question(
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stop or (),
            piecewise=self.stream,
        )


class TextPart(HttpModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


Content = Annotated[
    tuple[TextPart, ...],
    BeforeValidator(lambda sent: [{"type": "text", "text": sent}] if isinstance(sent, str) else sent),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]}),
]
"""A text, or a text in parts."""


class ChatMessage(HttpModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is read as `system`."""

    content: Content

    def message(self) -> Message:
        """The turn for the language model, in one text."""
        text = "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class ChatRequest(Sampling):
    """Ask for the next turn of a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": MODEL, "messages": [{"role": "user", "content": "Name a film of 1997."}], "max_tokens": 40}
            ]
        }
    )

    messages: tuple[ChatMessage, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Tokens | None = None
    """The newer name of `max_tokens`."""

    @model_validator(mode="after")
    def _one_name(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens mean the same; send one of them")
        return self


class CompletionRequest(Sampling):
    """Ask for what follows a text."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": MODEL, "prompt": "Once upon a time", "max_tokens": 20}]}
    )

    prompt: str = Field(min_length=1)
    max_tokens: Tokens | None = LEGACY_MAX_TOKENS


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswer(BaseModel):
    """The turn that was written."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """The only choice."""

    index: Literal[0] = 0
    message: ChatAnswer
    finish_reason: FinishReason
    """`length`: the tokens that were asked for, or the model's context, are used up."""
    logprobs: None = None


class TextChoice(BaseModel):
    """The only choice."""

    index: Literal[0] = 0
    text: str
    finish_reason: FinishReason
    logprobs: None = None


class _Answer(BaseModel):
    id: str
    created: int
    """Seconds since the epoch."""
    model: str
    system_fingerprint: str
    usage: Usage


class ChatCompletion(_Answer):
    """The next turn of a conversation."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: tuple[ChatChoice]


class Completion(_Answer):
    """What follows a text."""

    object: Literal["text_completion"] = "text_completion"
    choices: tuple[TextChoice]


class OpenAiError(BaseModel):
    """An error as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    """The field that is wrong."""
    code: str


class CompletionProblem(Problem):
    """An RFC 9457 problem that holds OpenAI's error as well."""

    error: OpenAiError
