// Runs the checks of one client and prints a JSON object for each: {"check": …, "error": null or a sentence}.
// Knows no client. The environment variables are those of ../scripts/checks.py.
import { z } from 'zod';

export const { BASE_URL, KEY, MODEL } = process.env;
export const WRONG_KEY_STATUS = Number(process.env.WRONG_KEY_STATUS);
export const QUESTION = 'What is the closest star to Earth?';
export const ANSWER = 'Proxima';
export const WEATHER_QUESTION = 'What is the weather in Paris?';
export const PERSON_QUESTION = 'Invent a person.';

// Bounded, so that even a tiny model comes to an end.
export const Person = z.object({
  name: z.string().max(20),
  age: z.number().int().min(0).max(150),
  kind: z.enum(['child', 'adult']),
});
export const Weather = z.object({ city: z.enum(['Paris', 'Rome', 'Oslo']), unit: z.enum(['celsius', 'fahrenheit']) });
export const getWeather = (input) => {
  const { city, unit } = Weather.parse(input);
  return `It is 20 degrees ${unit} in ${city}.`;
};

const checks = [];
export const check = (name, body) => checks.push([name, body]);

export function assert(condition, message) {
  if (!condition) throw new Error(`not as expected: ${JSON.stringify(message)?.slice(0, 600)}`);
}

export function contains(text, part) {
  assert(text.includes(part), text);
}

// Awaits a call that must fail because the server answers `status`. Returns the error.
export async function fails(call, status) {
  let value;
  try {
    value = await call();
  } catch (error) {
    const statuses = [];
    for (let link = error; link; link = link.cause ?? link.lastError) statuses.push(link.status ?? link.statusCode);
    assert(statuses.includes(status), { statuses, error: String(error) });
    return error;
  }
  throw new Error(`no error: ${JSON.stringify(value)}`.slice(0, 300));
}

export async function run() {
  for (const [name, body] of checks) {
    let error = null;
    try {
      await body();
    } catch (failure) {
      const cause = failure.cause ? ` (${failure.cause})` : '';
      const answer = failure.responseBody ? ` ${failure.responseBody}` : '';
      error = `${failure}${cause}${answer}`.replace(/\s+/g, ' ').slice(0, 1000);
    }
    console.log(JSON.stringify({ check: name, error }));
  }
}
