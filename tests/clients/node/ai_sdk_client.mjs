// The AI SDK with its providers for OpenAI-compatible servers, OpenAI (responses) and Anthropic.
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from 'ai';
import * as c from './checks.mjs';

globalThis.AI_SDK_LOG_WARNINGS = false;
const provider = (apiKey = c.KEY) =>
  createOpenAICompatible({
    name: 'server', baseURL: c.BASE_URL, apiKey, includeUsage: true, supportsStructuredOutputs: true,
  });
const greedy = { model: provider()(c.MODEL), temperature: 0, maxOutputTokens: 100, maxRetries: 0 };
const tools = {
  get_weather: tool({ description: 'The weather', inputSchema: c.Weather, execute: async (input) => c.getWeather(input) }),
};
// An error of a stream goes to onError, not to the caller.
const collected = async (call) => {
  let failure = null;
  const result = call((event) => (failure = event.error));
  let text = '';
  for await (const piece of result.textStream) text += piece;
  if (failure) throw failure;
  return { text, result };
};

c.check('generateText and usage', async () => {
  const { text, usage } = await generateText({ ...greedy, prompt: c.QUESTION });
  c.contains(text, c.ANSWER);
  c.assert(usage.outputTokens > 0, usage);
});

c.check('streamText and usage', async () => {
  const { text, result } = await collected((onError) => streamText({ ...greedy, prompt: c.QUESTION, onError }));
  c.contains(text, c.ANSWER);
  c.assert((await result.usage).outputTokens > 0, await result.usage);
});

c.check('forced tool', async () => {
  const { toolResults } = await generateText({ ...greedy, prompt: c.WEATHER_QUESTION, tools, toolChoice: 'required' });
  c.assert(toolResults.length > 0, toolResults);
  c.contains(toolResults[0].output, 'degrees');
});

c.check('forced tool, streamed', async () => {
  const toolChoice = { type: 'tool', toolName: 'get_weather' };
  const { result } = await collected((onError) =>
    streamText({ ...greedy, prompt: c.WEATHER_QUESTION, tools, toolChoice, onError }),
  );
  c.contains((await result.toolResults)[0].output, 'degrees');
});

c.check('tools in several steps', async () => {
  const steps = { stopWhen: stepCountIs(2), prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? 'none' : 'required' }) };
  const answer = await generateText({ ...greedy, prompt: c.WEATHER_QUESTION, tools, ...steps });
  c.assert(answer.steps.length === 2 && answer.text, answer.steps);
});

c.check('tool, automatic', async () => {
  await generateText({ ...greedy, prompt: c.WEATHER_QUESTION, tools, stopWhen: stepCountIs(2) });
});

c.check('generateObject', async () => {
  const { object } = await generateObject({ ...greedy, prompt: c.PERSON_QUESTION, schema: c.Person });
  c.Person.parse(object);
});

c.check('streamObject', async () => {
  let failure = null;
  const onError = (event) => (failure = event.error);
  const result = streamObject({ ...greedy, prompt: c.PERSON_QUESTION, schema: c.Person, onError });
  let last = null;
  for await (const part of result.partialObjectStream) last = part;
  if (failure) throw failure;
  c.Person.parse(last);
});

c.check('Output.object', async () => {
  const output = Output.object({ schema: c.Person });
  c.Person.parse((await generateText({ ...greedy, prompt: c.PERSON_QUESTION, output })).output);
});

c.check('@ai-sdk/openai: responses', async () => {
  const openai = createOpenAI({ baseURL: c.BASE_URL, apiKey: c.KEY });
  const ask = { ...greedy, model: openai(c.MODEL) };
  c.contains((await generateText({ ...ask, prompt: c.QUESTION })).text, c.ANSWER);
  const called = await generateText({ ...ask, prompt: c.WEATHER_QUESTION, tools, toolChoice: 'required' });
  c.contains(called.toolResults[0].output, 'degrees');
  const { text } = await collected((onError) => streamText({ ...ask, prompt: c.QUESTION, onError }));
  c.contains(text, c.ANSWER);
});

c.check('@ai-sdk/anthropic', async () => {
  const key = c.WRONG_KEY_STATUS === 401 ? { apiKey: c.KEY } : { authToken: c.KEY };
  const ask = { ...greedy, model: createAnthropic({ baseURL: c.BASE_URL, ...key })(c.MODEL) };
  c.contains((await generateText({ ...ask, prompt: c.QUESTION })).text, c.ANSWER);
  const called = await generateText({ ...ask, prompt: c.WEATHER_QUESTION, tools, toolChoice: 'required' });
  c.contains(called.toolResults[0].output, 'degrees');
  const { text } = await collected((onError) => streamText({ ...ask, prompt: c.QUESTION, onError }));
  c.contains(text, c.ANSWER);
});

c.check('wrong key', async () => {
  await c.fails(() => generateText({ ...greedy, model: provider('wrong')(c.MODEL), prompt: c.QUESTION }), c.WRONG_KEY_STATUS);
});

c.check('wrong parameter', async () => {
  await c.fails(() => generateText({ ...greedy, temperature: 9, prompt: c.QUESTION }), 400);
});

await c.run();
