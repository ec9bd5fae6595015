// Loops of tools by Vercel's `ai`, whole and streamed, and a typed answer. Arguments: URL MODEL
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

// NODE_PATH counts for require only.
const find = createRequire(import.meta.url).resolve;
const { generateText, isStepCount, Output, streamText, tool } = await import(find("ai"));
const { createOpenAICompatible } = await import(find("@ai-sdk/openai-compatible"));
const { z } = await import(find("zod"));

const [url, name] = process.argv.slice(2);
const root = path.dirname(path.dirname(find("ai")));
console.log("ai", JSON.parse(readFileSync(path.join(root, "package.json"))).version);

function check(condition, what) {
  if (!condition) throw new Error(`FAILED: ${typeof what === "string" ? what : JSON.stringify(what)}`);
}

const planaria = createOpenAICompatible({
  name: "planaria", baseURL: `${url}/v1`, includeUsage: true, supportsStructuredOutputs: true,
});
const model = planaria(name);
let heard = [];
const weather = tool({
  description: "Tells the weather.",
  inputSchema: z.object({ city: z.enum(["Oslo", "Rome"]), days: z.number().int().min(1).max(9) }),
  execute: async ({ city, days }) => {
    heard.push(city);
    return `${days} days of rain in ${city}`;
  },
});
const asked = {
  model,
  tools: { weather },
  toolChoice: "required",
  stopWhen: isStepCount(4),
  // A model that makes up what it says would call for ever.
  prepareStep: ({ stepNumber }) => (stepNumber === 0 ? {} : { toolChoice: "none" }),
  prompt: "What is the weather?",
  maxOutputTokens: 600,
  maxRetries: 0,
};

function checkLoop(steps) {
  check(steps.length === 2, `steps: ${steps.length}`);
  const [first, last] = steps;
  check(first.finishReason === "tool-calls" && first.toolCalls.length >= 1, first.finishReason);
  check(first.toolCalls.every((call) => !call.invalid), first.toolCalls);
  check(first.toolResults.length === heard.length && heard.length === first.toolCalls.length, first.toolResults);
  check(["stop", "length"].includes(last.finishReason) && last.toolCalls.length === 0, last.finishReason);
  check(steps.every((step) => step.usage.inputTokens > 0 && step.usage.outputTokens > 0), [first.usage, last.usage]);
}

checkLoop((await generateText(asked)).steps);

heard = [];
let pieces = 0;
const streamed = streamText({ ...asked, onError: ({ error }) => { throw error; } });
for await (const piece of streamed.fullStream) {
  check(piece.type !== "error", String(piece.error));
  pieces += 1;
}
check(pieces > 4, `it comes in pieces: ${pieces}`);
checkLoop(await streamed.steps);

const schema = z.object({ sky: z.enum(["wet", "dry"]), degrees: z.number().int().min(-40).max(50) });
const typed = await generateText({ model, prompt: "What is the weather?", output: Output.object({ schema }), maxRetries: 0 });
check(["wet", "dry"].includes(typed.output.sky), typed.output);
const growing = streamText({ model, prompt: "What is the weather?", output: Output.object({ schema }), maxRetries: 0 });
check(["wet", "dry"].includes((await growing.output).sky), "a typed answer, streamed");

console.log("all checks passed");
