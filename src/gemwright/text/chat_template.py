"""Encode conversations with the chat template of a checkpoint, or of its family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gemwright.errors import GemwrightError
from gemwright.text.chat import RefusedError
from gemwright.text.control_tokens import ControlTokens
from gemwright.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemwright.text.protected_template import Pieces, ProtectedTemplate

DEFAULT, WITH_TOOLS = "default", "tool_use"
"""Names of a checkpoint's templates: the usual one, and the one for conversations with tools."""
_PROBE = "probe"


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """The chat template of a model.

    Attributes:
        tokenizer: The tokenizer of the model.
        sources: Templates in Jinja by name. One is enough.
        special_tokens: Variables of templates such as `bos_token`.
        image_marker: The control token of an image.
    """

    tokenizer: Tokenizer
    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]
    image_marker: str = "<start_of_image>"

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        images: Sequence[Sequence[int]] = (),
        variables: Mapping[str, Any] | None = None,
        answer: str = "",
    ) -> list[int]:
        """Return the ids of a conversation up to the model's next turn.

        Args:
            messages: The messages, as `gemwright.text.chat.read_messages` returns them.
            tools: Descriptions of functions that the model may call, as JSON schemas.
            images: The ids of each image, which replace the markers of images in order.
            variables: Other variables of the template, such as `enable_thinking`.
            answer: The beginning of the model's next turn.

        Raises:
            GemwrightError: The template refuses the conversation, fails or exceeds a limit, or writes another number of
                images.
        """
        pieces = self.render(messages, tools, variables)
        match pieces:
            case [*before, str(last)]:  # encoded together with the answer, as in training
                pieces = [*before, last + answer]
            case _:
                pieces = [*pieces, answer]
        return self._encode(pieces, images)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        prompt: bool = True,
    ) -> "Pieces":
        """Return the texts and the ids of control tokens of a conversation.

        Args:
            messages: As for `encode`.
            tools: As for `encode`.
            variables: As for `encode`.
            prompt: Whether the model's next turn begins at the end.

        Raises:
            GemwrightError: As for `encode`.
        """
        if not messages:
            raise GemwrightError("The conversation does not end with a user message: add one for the model to answer.")
        template = self._with_tools if tools else self._default
        messages = self._name_roles(messages)
        given = {**(variables or {}), "tools": tools, "documents": None, "add_generation_prompt": prompt}
        try:
            return template.render(messages, given)
        except RefusedError as error:
            merged = _merge_system(messages)
            if merged is None:
                raise
            try:
                return template.render(merged, given)
            except GemwrightError:
                raise error from None

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The control token that the template writes after an answer, if any."""
        talk = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE * 2}]
        given = {"tools": None, "documents": None, "add_generation_prompt": False}
        try:
            pieces = self._default.render(talk, given)
        except GemwrightError:
            return ()
        answers = [index for index, piece in enumerate(pieces) if isinstance(piece, str) and _PROBE * 2 in piece]
        return tuple([piece for piece in pieces[answers[-1] :] if isinstance(piece, int)][:1]) if answers else ()

    @cached_property
    def _default(self) -> "ProtectedTemplate":
        return self._compile(DEFAULT)

    @cached_property
    def _with_tools(self) -> "ProtectedTemplate":
        return self._compile(WITH_TOOLS) if WITH_TOOLS in self.sources else self._default

    def _compile(self, name: str) -> "ProtectedTemplate":
        from gemwright.text.protected_template import ProtectedTemplate

        source = self.sources.get(name) or next(iter(self.sources.values()))
        tokens = ControlTokens(self.tokenizer.control_tokens)
        return ProtectedTemplate(source, tokens, self.special_tokens, self.image_marker)

    def _name_roles(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Return messages with the role `developer` as `system` if the template does not know it."""
        if any("developer" in source for source in self.sources.values()):
            return messages
        return [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]

    def _encode(self, pieces: "Pieces", images: Sequence[Sequence[int]]) -> list[int]:
        """Return the ids of a rendered conversation."""
        marker = self.tokenizer.id_of(self.image_marker) if images else -1
        found = pieces.count(marker)
        if found != len(images):
            raise GemwrightError(
                f"The chat template writes {found} images for {len(images)}; put them into user messages."
            )
        rest = iter(images)
        ids = self.tokenizer.join(pieces)
        if images:
            ids = [token for piece in ids for token in (next(rest) if piece == marker else [piece])]
        if not ids:
            raise GemwrightError("The chat template writes nothing for this conversation; use another template.")
        return ids


def _merge_system(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """Return messages with a leading system message put before the first user message; None if there is none."""
    match messages:
        case [{"role": "system" | "developer", "content": str(system)}, {"role": "user", "content": content}, *rest]:
            if isinstance(content, str):
                content = f"{system}\n\n{content.strip()}"
            else:
                content = [{"type": "text", "text": f"{system}\n\n"}, *content]
            return [{**messages[1], "content": content}, *rest]
        case _:
            return None
