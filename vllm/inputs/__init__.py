"""From what the user gives to token ids."""

from vllm.inputs.prompts import PromptType, TextPrompt, TokensPrompt

__all__ = ["PromptType", "TextPrompt", "TokensPrompt"]
