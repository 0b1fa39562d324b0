// The Anthropic package for JavaScript: messages, streams, tools, token counts.
import Anthropic from '@anthropic-ai/sdk';
import { z } from 'zod';
import * as c from './checks.mjs';

const options = { baseURL: c.BASE_URL.replace(/\/v1$/, ''), maxRetries: 0, timeout: 60_000 };
const client = new Anthropic({ ...options, apiKey: c.KEY });
const user = (content) => [{ role: 'user', content }];
const greedy = { model: c.MODEL, temperature: 0, max_tokens: 100 };
const tools = [{ name: 'get_weather', description: 'The weather', input_schema: z.toJSONSchema(c.Weather) }];

c.check('messages', async () => {
  const answer = await client.messages.create({ ...greedy, messages: user(c.QUESTION) });
  c.contains(answer.content[0].text, c.ANSWER);
});

c.check('stream', async () => {
  const final = await client.messages.stream({ ...greedy, messages: user(c.QUESTION) }).finalMessage();
  c.contains(final.content[0].text, c.ANSWER);
  c.assert(final.usage.output_tokens > 0, final.usage);
});

c.check('forced tool and its result', async () => {
  const messages = user(c.WEATHER_QUESTION);
  const ask = { ...greedy, messages, tools, tool_choice: { type: 'any' } };
  const answer = await client.messages.stream(ask).finalMessage();
  c.assert(answer.stop_reason === 'tool_use', answer);
  const content = answer.content
    .filter((block) => block.type === 'tool_use')
    .map((block) => ({ type: 'tool_result', tool_use_id: block.id, content: c.getWeather(block.input) }));
  const more = [...messages, { role: 'assistant', content: answer.content }, { role: 'user', content }];
  const final = await client.messages.create({ ...greedy, messages: more, tools, tool_choice: { type: 'none' } });
  c.assert(final.content[0].type === 'text', final);
});

c.check('count_tokens', async () => {
  const counted = await client.messages.countTokens({ model: c.MODEL, messages: user(c.QUESTION) });
  c.assert(counted.input_tokens > 0, counted);
});

c.check('wrong key', async () => {
  const wrong = new Anthropic({ ...options, apiKey: 'wrong' });
  await c.fails(() => wrong.messages.create({ ...greedy, messages: user(c.QUESTION) }), c.WRONG_KEY_STATUS);
});

await c.run();
