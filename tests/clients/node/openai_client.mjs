// The openai package for JavaScript: chats, tools, objects, responses, models, errors.
import OpenAI from 'openai';
import { zodResponseFormat, zodFunction, zodTextFormat } from 'openai/helpers/zod';
import * as c from './checks.mjs';

const client = new OpenAI({ baseURL: c.BASE_URL, apiKey: c.KEY, maxRetries: 0, timeout: 60_000 });
const user = (content) => [{ role: 'user', content }];
const greedy = { model: c.MODEL, temperature: 0, max_tokens: 100 };
const weather = () => zodFunction({ name: 'get_weather', parameters: c.Weather, function: c.getWeather });

c.check('models', async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  c.assert(ids.length === 1 && ids[0] === c.MODEL, ids);
  c.assert((await client.models.retrieve(c.MODEL)).id === c.MODEL);
});

c.check('chat and usage', async () => {
  const answer = await client.chat.completions.create({ ...greedy, messages: user(c.QUESTION) });
  c.contains(answer.choices[0].message.content, c.ANSWER);
  c.assert(answer.usage.completion_tokens > 0, answer.usage);
});

c.check('stream and usage', async () => {
  const options = { stream: true, stream_options: { include_usage: true } };
  const stream = await client.chat.completions.create({ ...greedy, ...options, messages: user(c.QUESTION) });
  let text = '';
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
  }
  c.contains(text, c.ANSWER);
  c.assert(usage.completion_tokens > 0, usage);
});

c.check('stream helper', async () => {
  const final = await client.chat.completions.stream({ ...greedy, messages: user(c.QUESTION) }).finalContent();
  c.contains(final, c.ANSWER);
});

c.check('forced tool and its result', async () => {
  const messages = user(c.WEATHER_QUESTION);
  const tools = [weather()];
  const answer = await client.chat.completions.create({ ...greedy, messages, tools, tool_choice: 'required' });
  const { message, finish_reason } = answer.choices[0];
  c.assert(finish_reason === 'tool_calls', finish_reason);
  const results = message.tool_calls.map((call) => ({
    role: 'tool',
    tool_call_id: call.id,
    content: c.getWeather(JSON.parse(call.function.arguments)),
  }));
  const more = { messages: [...messages, message, ...results], tools, tool_choice: 'none' };
  const final = await client.chat.completions.create({ ...greedy, ...more });
  c.assert(final.choices[0].message.content, final);
});

c.check('runTools, by name', async () => {
  const tool_choice = { type: 'function', function: { name: 'get_weather' } };
  const runner = client.chat.completions.runTools({
    ...greedy, messages: user(c.WEATHER_QUESTION), tools: [weather()], tool_choice,
  });
  c.contains(await runner.finalFunctionToolCallResult(), 'degrees');
});

c.check('runTools, streamed, automatic', async () => {
  const ask = { ...greedy, messages: user(c.WEATHER_QUESTION), tools: [weather()], stream: true };
  const runner = client.chat.completions.runTools(ask, { maxChatCompletions: 3 });
  await runner.done();
});

c.check('object: parse', async () => {
  const response_format = zodResponseFormat(c.Person, 'person');
  const answer = await client.chat.completions.parse({ ...greedy, messages: user(c.PERSON_QUESTION), response_format });
  c.Person.parse(answer.choices[0].message.parsed);
});

c.check('completions: several prompts', async () => {
  const answer = await client.completions.create({ ...greedy, prompt: ['One, two, three,', 'A, B,'], max_tokens: 8 });
  c.contains(answer.choices[0].text, 'four');
  c.assert(answer.choices.length === 2, answer);
});

c.check('responses', async () => {
  const answer = await client.responses.create({ model: c.MODEL, input: c.QUESTION, temperature: 0, max_output_tokens: 100 });
  c.contains(answer.output_text, c.ANSWER);
});

c.check('responses, streamed', async () => {
  const ask = { model: c.MODEL, input: c.QUESTION, temperature: 0, max_output_tokens: 100 };
  const final = await client.responses.stream(ask).finalResponse();
  c.contains(final.output_text, c.ANSWER);
});

c.check('responses: object', async () => {
  const text = { format: zodTextFormat(c.Person, 'person') };
  const ask = { model: c.MODEL, input: c.PERSON_QUESTION, temperature: 0, max_output_tokens: 100, text };
  c.Person.parse((await client.responses.parse(ask)).output_parsed);
});

c.check('wrong key', async () => {
  const wrong = client.withOptions({ apiKey: 'wrong' });
  await c.fails(() => wrong.chat.completions.create({ ...greedy, messages: user(c.QUESTION) }), c.WRONG_KEY_STATUS);
});

c.check('wrong parameter', async () => {
  const ask = { ...greedy, messages: user(c.QUESTION), temperature: 9 };
  const error = await c.fails(() => client.chat.completions.create(ask), 400);
  c.assert(error.param === 'temperature', error);
});

await c.run();
