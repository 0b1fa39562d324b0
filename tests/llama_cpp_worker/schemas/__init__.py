"""A sample of 400 JSON schemas in the shapes that pydantic, zod and OpenAI's guide to structured outputs produce."""
