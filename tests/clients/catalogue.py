"""Which clients there are, and what each of them needs to reach the server. Runs nothing."""

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
SINCE = "2026-11-26"  # the day on which these clients ran for the first time


@dataclass(frozen=True, slots=True)
class Client:
    """A script of `scripts/` or `node/`, and the package whose version is reported.

    how: what a person writes to use the client, in Markdown.
    """

    title: str
    script: str
    package: str
    how: str
    since: str = SINCE

    @property
    def path(self) -> Path:
        return FOLDER / ("node" if self.is_node else "scripts") / self.script

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")

    @property
    def version(self) -> str:
        """As pinned: in package.json, or in the head of the script."""
        if self.is_node:
            return str(json.loads((FOLDER / "node" / "package.json").read_text())["dependencies"][self.package])
        return next(
            pin.partition("==")[2] for pin in requirements(self.path) if re.split(r"[\[=]", pin)[0] == self.package
        )


def requirements(script: Path) -> list[str]:
    """The `dependencies` of a script's head, as Python's inline script metadata defines them."""
    head = script.read_text().split("# /// script\n")[1].split("# ///")[0]
    return list(tomllib.loads(re.sub(r"^# ?", "", head, flags=re.MULTILINE))["dependencies"])


CLIENTS = (
    Client("openai, Python", "openai_client.py", "openai", "`OpenAI(base_url=URL, api_key=KEY)`"),
    Client("openai, Node", "openai_client.mjs", "openai", "`new OpenAI({baseURL: URL, apiKey: KEY})`"),
    Client(
        "LiteLLM", "litellm_client.py", "litellm", '`completion(model="openai/llamacpp", api_base=URL, api_key=KEY, …)`'
    ),
    Client(
        "LangChain", "langchain_client.py", "langchain-openai", "`ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL)`"
    ),
    Client(
        "LlamaIndex",
        "llama_index_client.py",
        "llama-index-llms-openai-like",
        "`OpenAILike(api_base=URL, api_key=KEY, model=MODEL, is_chat_model=True, is_function_calling_model=True)`",
    ),
    Client(
        "Instructor",
        "instructor_client.py",
        "instructor",
        "`from_openai(OpenAI(base_url=URL, api_key=KEY), mode=…)`; JSON, MD_JSON and PARALLEL_TOOLS force nothing",
    ),
    Client(
        "Pydantic AI",
        "pydantic_ai_client.py",
        "pydantic-ai-slim",
        "`OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))`, or `OpenAIResponsesModel`",
    ),
    Client(
        "OpenAI Agents SDK",
        "openai_agents_client.py",
        "openai-agents",
        "`OpenAIChatCompletionsModel` or `OpenAIResponsesModel(MODEL, AsyncOpenAI(base_url=URL, api_key=KEY))`",
    ),
    Client(
        "Haystack",
        "haystack_client.py",
        "haystack-ai",
        "`OpenAIChatGenerator(api_base_url=URL, api_key=Secret.from_token(KEY), model=MODEL)`",
    ),
    Client("smolagents", "smolagents_client.py", "smolagents", "`OpenAIModel(MODEL, api_base=URL, api_key=KEY)`"),
    Client(
        "AutoGen",
        "autogen_client.py",
        "autogen-ext",
        "`OpenAIChatCompletionClient(model=MODEL, base_url=URL, api_key=KEY, model_info=…)`",
    ),
    Client(
        "llm",
        "llm_client.py",
        "llm",
        "in its extra-openai-models.yaml: `api_base: URL`, `supports_tools: true`, `supports_schema: true`",
    ),
    Client("AI SDK", "ai_sdk_client.mjs", "ai", "`createOpenAICompatible({name, baseURL: URL, apiKey: KEY})(MODEL)`"),
    Client(
        "anthropic, Python",
        "anthropic_client.py",
        "anthropic",
        "`Anthropic(base_url=ROOT, api_key=KEY)`",
    ),
    Client(
        "anthropic, Node",
        "anthropic_client.mjs",
        "@anthropic-ai/sdk",
        "`new Anthropic({baseURL: ROOT, apiKey: KEY})`",
    ),
    Client(
        "lm-eval",
        "lm_eval_client.py",
        "lm-eval",
        "`--model local-completions --model_args base_url=URL/completions,tokenizer=FOLDER,…`, `OPENAI_API_KEY=KEY`",
    ),
)
