// Looks at a cluster by a node's page while a node is killed. Usage: CHROMIUM URL MODEL VICTIM FOLDER
//
// VICTIM is the name of the node that is killed, FOLDER where pictures of the page are kept.
import { mkdirSync } from "node:fs";
import { check, fits, visit } from "./browser.mjs";

const [chromium, url, model, victim, folder] = process.argv.slice(2);
const QUESTION = "Tell me a story about a badger in an old mill.";
const WIDE = { width: 1280, height: 900 };
const PHONE = { width: 360, height: 740 };
/** A death is noticed within half a second where machines are quiet, and told at once; those that test are slow. */
const SEEN_WITHIN = 5000;

const cluster = async () => (await fetch(`${url}/cluster`)).json();
const planOf = async () => (await cluster()).models.find((one) => one.name === model);

async function picture(page, name) {
  // So that nothing is in the middle of a movement.
  await page.waitForTimeout(500);
  await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
}

/** Waits until the page shows this plan: in the picture, and as a bar of all layers. */
async function drawn(page, plan) {
  for (const { name, first_layer: first, last_layer: last } of plan.stages) {
    await page.waitForSelector(`.segment[data-node="${name}"][data-layers="${first}-${last}"][data-state="ready"]`);
    const layers = page.locator(`.card-node[data-node="${name}"][data-state="alive"] .layers`);
    await layers.getByText(`${first}–${last}`).waitFor();
  }
  await page.waitForSelector(`.about[data-epoch="${plan.epoch.counter}"]`);
  check((await page.locator(".segment").count()) === plan.stages.length, "it shows a stage too many");
}

/** Asks, and gives the answer's text once it is whole. */
async function ask(page) {
  await page.fill("#question", QUESTION);
  await page.press("#question", "Enter");
  await page.waitForSelector('#progress:is([data-state="done"], [data-state="failed"])');
  const said = await page.textContent("#progress");
  check((await page.getAttribute("#progress", "data-state")) === "done", `the answer ended: ${said}`);
  check(/tokens\/s/.test(said), `it says how fast it was: ${said}`);
  return page.evaluate(() => {
    const text = document.querySelector('[data-role="assistant"] .text').cloneNode(true);
    text.querySelectorAll(".mark").forEach((mark) => mark.remove());
    return text.textContent;
  });
}

/** Takes down in the page when what was first to be seen. */
async function watch(page, name) {
  await page.evaluate((name) => {
    window.seen = {};
    const signs = {
      pieces: () => document.querySelector('[data-role="assistant"] .text')?.childNodes.length > 20,
      suspect: () => document.querySelector(`.card-node[data-node="${name}"][data-state="suspect"]`),
      down: () => document.querySelector(`.card-node[data-node="${name}"][data-state="down"]`),
      plan: () => document.querySelector(".segment") && !document.querySelector(`.segment[data-node="${name}"]`),
      recovering: () => document.querySelector('#progress[data-state="recovering"]'),
    };
    const look = () => {
      for (const [sign, is] of Object.entries(signs)) {
        if (!(sign in window.seen) && is()) {
          window.seen[sign] = Date.now();
          if (sign === "pieces") window.kill();
        }
      }
    };
    new MutationObserver(look).observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
  }, name);
}

await visit(chromium, url, { viewport: WIDE, colorScheme: "light" }, async (page, seen) => {
  mkdirSync(folder, { recursive: true });
  // So that it goes on for long enough, and is the same each time.
  await page.route("**/v1/chat/completions", (route) => {
    const body = { ...route.request().postDataJSON(), temperature: 0, ignore_eos: true, max_tokens: 300 };
    return route.continue({ postData: JSON.stringify(body) });
  });

  const before = await planOf();
  check(before.stages.length === 3, "the plan has three stages");
  await page.waitForSelector('#connection[data-status="live"]');
  await drawn(page, before);
  check((await page.locator('#nodes > [data-state="alive"]').count()) === 3, "three nodes are listed");
  await picture(page, "light");

  await page.fill("#question", QUESTION);
  await page.press("#question", "Enter");
  await page.waitForSelector('#progress[data-state="answering"]');
  await page.click("#stop");
  await page.locator('#progress[data-state="idle"]', { hasText: "Stopped" }).waitFor();
  await page.waitForFunction(() => document.querySelector("#running").textContent === "0");
  await page.click("#clear");

  const flowing = page.waitForFunction(() => Number(document.querySelector("#rate").textContent) > 0);
  const [{ kernels }] = (await cluster()).nodes;
  if (kernels) {
    const words = `${kernels.name}, ${kernels.threads} thread`;
    await page.locator(".facts dd", { hasText: words }).first().waitFor({ state: "attached" });
  }
  const undisturbed = await ask(page);
  await flowing;
  check(undisturbed.length > 100, `an answer in words: ${undisturbed}`);
  await picture(page, "answered");
  await page.click("#clear");

  const { pid } = (await cluster()).nodes.find((node) => node.name === victim);
  let killed = null;
  await page.exposeFunction("kill", () => {
    killed = Date.now();
    process.kill(pid, "SIGKILL");
  });
  await watch(page, victim);
  const disturbed = await ask(page);
  check(disturbed === undisturbed, `another answer: ${disturbed}\ninstead of ${undisturbed}`);
  check((await page.locator('.mark[data-mark="recovered"]').count()) === 1, "the answer shows where it was interrupted");
  await page.waitForFunction(() => "down" in window.seen && "plan" in window.seen);
  const times = await page.evaluate(() => window.seen);
  const after = (sign) => times[sign] - killed;
  console.log(`after the kill: suspect ${after("suspect")} ms, recovering ${after("recovering")} ms, `
    + `down ${after("down")} ms, new plan ${after("plan")} ms`);
  check("recovering" in times, "the chat says that it recovers");
  check(after("down") < SEEN_WITHIN, `the death was seen after ${after("down")} ms`);
  const [recovery] = (await cluster()).recoveries;
  console.log(`the node that was asked noticed it ${recovery.detect_ms} ms after the last token`);
  const now = await planOf();
  check(now.epoch.counter > before.epoch.counter && now.stages.length === 2, "there is a new plan");
  await drawn(page, now);
  await page.waitForSelector('#timeline [data-kind="failure"]');
  await page.locator("#timeline .title", { hasText: "went on after" }).waitFor();
  for (const phase of ["detect", "load", "rebuild", "resume"]) {
    check((await page.locator(`#timeline dl [data-phase="${phase}"]`).count()) === 1, `the phase ${phase} is shown`);
  }
  await picture(page, "killed-light");
  await page.emulateMedia({ colorScheme: "dark" });
  await picture(page, "killed-dark");
  await page.setViewportSize(PHONE);
  await fits(page, "the page on a phone");
  await picture(page, "killed-phone-dark");
  await page.emulateMedia({ colorScheme: "light" });
  await picture(page, "killed-phone");

  check(seen.foreign.length === 0, `asked elsewhere: ${seen.foreign}`);
  check(seen.errors.length === 0, `complained: ${seen.errors.join("\n")}`);

  // The node that shows the page goes, too.
  const own = await cluster();
  process.kill(own.nodes.find((node) => node.id === own.node.id).pid, "SIGKILL");
  await page.locator("#connection", { hasText: "is away, trying again" }).waitFor();
  await page.fill("#question", "Are you there?");
  await page.press("#question", "Enter");
  await page.locator('#progress[data-state="failed"]', { hasText: "cannot be reached" }).waitFor();
  await picture(page, "away");
});
