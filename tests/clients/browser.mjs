// A real browser at a node's page, and what must never happen there.
import { createRequire } from "node:module";

// NODE_PATH counts for require only.
const { chromium } = createRequire(import.meta.url)("playwright-core");

const ARGUMENTS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
/** Longer than anything here takes on a machine that does much else. */
const PATIENCE = 60_000;
/** A test that hangs says so. */
const AT_MOST = 240_000;

export function check(condition, what) {
  if (!condition) throw new Error(`FAILED: ${what}`);
}

/** Opens the page of the node at `url`, and has `steps` do what they will with it. */
export async function visit(executablePath, url, options, steps) {
  setTimeout(() => {
    console.error("FAILED: it took too long");
    process.exit(1);
  }, AT_MOST).unref();
  const browser = await chromium.launch({ executablePath, args: ARGUMENTS });
  try {
    const context = await browser.newContext(options);
    context.setDefaultTimeout(PATIENCE);
    const page = await context.newPage();
    const seen = { errors: [], foreign: [] };
    page.on("request", (request) => {
      if (new URL(request.url()).origin !== new URL(url).origin) seen.foreign.push(request.url());
    });
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) seen.errors.push(message.text());
    });
    page.on("pageerror", (error) => seen.errors.push(error.stack));
    await page.goto(url);
    await steps(page, seen);
    console.log("all checks passed");
  } finally {
    await browser.close();
  }
}

/** Nothing is cut off at the right. */
export async function fits(page, what) {
  const beyond = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  check(beyond <= 0, `${what} is ${beyond} px wider than the window`);
}
