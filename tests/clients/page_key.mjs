// Opens the page of a node that demands a key. Usage: CHROMIUM URL KEY
import { check, visit } from "./browser.mjs";

const [chromium, url, key] = process.argv.slice(2);

async function offer(page, text) {
  await page.fill("#key-field", text);
  await page.click("#key button");
}

await visit(chromium, url, { viewport: { width: 1280, height: 900 } }, async (page, seen) => {
  await page.waitForSelector("#key:not([hidden])");
  check(await page.locator("#main").isHidden(), "nothing is shown without the key");
  check((await page.textContent("#key-problem")) === "", "nobody has given a wrong one");
  await offer(page, "sk-wrong");
  await page.locator("#key-problem", { hasText: "not the right one" }).waitFor();
  await offer(page, key);
  await page.waitForSelector('#connection[data-status="live"]');
  await page.waitForSelector('.card-node[data-state="alive"]');

  await page.fill("#question", "Hello");
  await page.click("#send");
  await page.waitForSelector('#progress[data-state="done"]');

  const kept = await page.evaluate(() => ({ tab: { ...sessionStorage }, ever: { ...localStorage }, cookie: document.cookie, at: location.href }));
  check(Object.values(kept.tab).includes(key), "the tab keeps the key");
  check(Object.keys(kept.ever).length === 0 && kept.cookie === "" && !kept.at.includes(key), "nothing else does");
  await page.reload();
  await page.waitForSelector('#connection[data-status="live"]');
  check(await page.locator("#key").isHidden(), "it is not asked for again");

  check(seen.foreign.length === 0, `asked elsewhere: ${seen.foreign}`);
  const others = seen.errors.filter((error) => !error.includes("401"));
  check(others.length === 0, `complained: ${others.join("\n")}`);
});
