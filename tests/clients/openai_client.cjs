// Talks to a Planaria cluster by the official openai package for Node.js. Usage: URL MODEL
const OpenAI = require("openai");

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me a story about a fox." }];

function check(condition, what) {
  if (!condition) {
    console.error("FAILED: " + what);
    process.exit(1);
  }
}

async function raises(kind, what, request) {
  try {
    await client.chat.completions.create({ model, messages, ...request });
  } catch (error) {
    check(error instanceof kind, `${what}: it is a ${error.constructor.name}`);
    return;
  }
  check(false, `${what} raised nothing`);
}

async function main() {
  const options = { model, messages, temperature: 0, max_tokens: 40 };
  const whole = await client.chat.completions.create(options);
  const text = whole.choices[0].message.content;
  check(text.length > 20, `a chat answers in words: ${text}`);

  let streamed = "";
  let last;
  for await (const chunk of await client.chat.completions.create({ ...options, stream: true })) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
    last = chunk.choices[0]?.finish_reason ?? last;
  }
  check(streamed === text, `streamed "${streamed}" is not "${text}"`);
  check(last === whole.choices[0].finish_reason, "the same finish reason");

  const history = [{ role: "developer", content: "You are a small model." }];
  for (let turn = 0; turn < 10; turn++) {
    history.push({ role: "user", content: `Hello, for the time ${turn}.` });
    history.push({ role: "assistant", content: turn % 2 ? "Hello." : null });
  }
  history.push({ role: "user", content: [{ type: "text", text: "Who are you?" }] });
  const plainly = await client.chat.completions.create({ model, messages: history });
  check(plainly.choices[0].message.content.trim(), "ten turns, by default");
  let pieces = "";
  for await (const chunk of client.chat.completions.stream({ model, messages: history })) {
    pieces += chunk.choices[0]?.delta?.content ?? "";
  }
  check(pieces.trim(), "and streamed");

  let plain = "";
  const prompt = { model, prompt: "A planarian is", temperature: 0, max_tokens: 20 };
  for await (const chunk of await client.completions.create({ ...prompt, stream: true })) {
    plain += chunk.choices[0]?.text ?? "";
  }
  check(plain === (await client.completions.create(prompt)).choices[0].text, "plain, streamed");

  await raises(OpenAI.NotFoundError, "an unknown model", { model: "nobody-has-this" });
  await raises(OpenAI.BadRequestError, "a bad temperature", { temperature: 9 });
  console.log("all checks passed");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
