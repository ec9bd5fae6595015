// Tries the parts of the page that decide something, in the browser that runs them. Usage: CHROMIUM URL
import { check, visit } from "./browser.mjs";

const [chromium, url] = process.argv.slice(2);

/** Cards that overlap or stick out, for each number of nodes and each width. */
async function misplaced() {
  const { loop, way } = await import("/page/layout.js");
  const wrong = [];
  for (let count = 1; count <= 12; count += 1) {
    for (let width = 280; width <= 1000; width += 20) {
      const layout = loop(count, width);
      const { width: w, height: h } = layout.card;
      const say = (what) => wrong.push(`${count} nodes in ${width} px: ${what}`);
      if (layout.places.length !== count) say("not as many places");
      if (layout.width > width) say("too wide");
      layout.places.forEach((a, index) => {
        if (a.x - w / 2 < 0 || a.x + w / 2 > layout.width || a.y - h / 2 < 0 || a.y + h / 2 > layout.height) say(`${index} sticks out`);
        for (const b of layout.places.slice(index + 1)) {
          if (Math.abs(a.x - b.x) < w + 8 && Math.abs(a.y - b.y) < h + 8) say(`${index} is too near to another`);
        }
        if (count > 1 && /NaN|Infinity/.test(way(layout, index, (index + 1) % count, 9))) say("no way");
      });
    }
  }
  return wrong;
}

/** Rates of counters as nodes tell them, once a second. */
async function rates() {
  const { Rates } = await import("/page/rates.js");
  const tell = (rates, at, count) => rates.take([{ id: "a", generated_tokens: count }], at);
  const found = {};
  const steady = new Rates();
  for (let second = 0; second <= 10; second += 1) tell(steady, 1000 * second, 50 * second);
  found.steady = steady.of("a", 10_200);
  found.silent = steady.of("a", 12_000);
  tell(steady, 13_000, 40);
  found.restarted = steady.of("a", 13_000);
  const burst = new Rates();
  tell(burst, 0, 100);
  tell(burst, 60_000, 130);
  found.afterSilence = burst.of("a", 60_000);
  found.total = burst.total(60_000);
  return found;
}

async function words() {
  const { bytes, list, millis, range, safety } = await import("/page/words.js");
  const model = { epoch: {}, n_minus_1_safe: false, failover: { a: null, b: [] }, stages: [] };
  return [bytes(1536 * 2 ** 20), millis(456), millis(1234), list(["a", "b", "c"]), range({ first_layer: 3, last_layer: 3 }), safety(model).text];
}

await visit(chromium, url, {}, async (page) => {
  const wrong = await page.evaluate(misplaced);
  check(wrong.length === 0, wrong.slice(0, 10).join("\n"));
  const found = await page.evaluate(rates);
  const expected = { steady: 50, silent: 0, restarted: 0, afterSilence: 30, total: 30 };
  check(JSON.stringify(found) === JSON.stringify(expected), JSON.stringify(found));
  const said = await page.evaluate(words);
  const sentences = ["1.5 GiB", "456 ms", "1.23 s", "a, b and c", "3", "Not N-1 safe: without a nobody has room for its layers."];
  check(JSON.stringify(said) === JSON.stringify(sentences), JSON.stringify(said));
});
