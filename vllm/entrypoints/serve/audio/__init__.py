"""Speech to text: /v1/audio/transcriptions and /v1/audio/translations, as OpenAI has them."""
