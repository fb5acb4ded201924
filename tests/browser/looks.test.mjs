// How the live page looks and reads: sizes, colour schemes, keyboard, screen readers; with feeds for states that are hard
// to reach.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before } from "node:test";
import { Feed, later } from "./feed.mjs";
import { NARROW, Visitors, WIDE, launch, listen, open, says, scenario, serve, until } from "./harness.mjs";

let browser, axe;
before(async () => {
  browser = await launch();
  axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
});
after(() => browser.close());

const WELL = /^All is well\.$/;
const SCHEMES = ["light", "dark"], VIEWPORTS = [WIDE, NARROW];

/** A feed that begins with what a real server of so many workers has sent. */
async function feed(test, workers) {
  const server = await serve(test, ["--workers", String(workers)]);
  Visitors.start(test, server.site, workers);
  let sample;
  await until(async () => {
    sample = await (await fetch(`${server.admin}/stats`)).json();
    return sample.totals.visits.welcomed > 0 && sample.workers.every((worker) => worker.driver && worker.silent_seconds !== null);
  }, "all workers");
  const feed = await Feed.start(test, server.admin);
  feed.send(later(sample, 0));
  return feed;
}

/** Waits until the page has got this sample. */
const shown = (page, sample) => page.waitForFunction((time) => newest().uptime_seconds === time, sample.uptime_seconds);

/** A page that has got a minute of this feed. */
async function watch(test, feed, options = {}) {
  const page = await open(test, browser, feed.url, options);
  feed.play(120);
  await shown(page, feed.last);
  return page;
}

const broken = {
  "a silent worker": (sample) => { sample.workers[1].silent_seconds = 12.3; },
  "a counter that fails": (sample) => {
    sample.counters[0].failing = sample.workers.length;
    sample.counters[0].counter = "a-counter-with-a-rather-long-name.of-a-department.internal.example:3001";
    sample.counters[0].addresses = ["[2001:db8:1234:5678:9abc:def0:1234:5678]:3001", "[2001:db8:1234:5678:9abc:def0:1234:5679]:3001"];
    sample.totals.visits.erred += 1e9;
    sample.totals.panics = 12;
    for (const cause of Object.keys(sample.totals.erred_by_cause)) sample.totals.erred_by_cause[cause] = 1e8;
  },
  "a store that fails": (sample) => {
    Object.assign(sample.bundled, { commits_failed: 1e9, store_problem: "db-1.of-a-department.internal.example:5432: error connecting to server: Connection refused (os error 111)" });
  },
  "a driver that is not the best": (sample) => {
    sample.workers.forEach((worker) => {
      worker.driver.description = "epoll; io_uring is unavailable: kernel.io_uring_disabled is 2 (set it to 0, or ask for epoll by --driver epoll)";
    });
  },
};

/** What the checker finds, and what it leaves open. */
async function findings(page) {
  if (!(await page.evaluate(() => "axe" in window))) await page.evaluate(axe);
  return page.evaluate(async () => {
    const { violations, incomplete, passes } = await window.axe.run(document, { preload: false, resultTypes: ["violations", "incomplete"] });
    if (passes.length < 15) throw new Error(`only ${passes.length} rules were checked`);
    const tell = ({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map(({ html, any }) => html + " " + any.map(({ message }) => message).join()).join(" | ")}`;
    return [...violations, ...incomplete].map(tell);
  });
}
const fits = (page) => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);

scenario("the accessibility checker finds nothing, and nothing scrolls sideways", async (test) => {
  for (const cores of [2, 64]) {
    const source = await feed(test, cores), page = await watch(test, source);
    const well = source.last;
    // The checker takes seconds over 64 panels: they differ in nothing but the ones that are wrong.
    const states = cores === 2 ? broken : { "a silent worker": broken["a silent worker"] };
    for (const [state, change] of Object.entries({ well: () => {}, ...states })) {
      const sample = later(well, 0);
      change(sample);
      source.send(sample);
      await shown(page, sample);
      for (const colorScheme of SCHEMES) for (const viewport of VIEWPORTS) {
        await page.emulateMedia({ colorScheme });
        await page.setViewportSize(viewport);
        const place = `${cores} cores, ${state}, ${colorScheme}, ${viewport.width} wide`;
        assert.deepEqual(await findings(page), [], place);
        assert.ok(await fits(page), `${place}: it scrolls sideways`);
      }
    }
  }
  // They do find something where there is something.
  const page = await watch(test, await feed(test, 2), { viewport: NARROW });
  await page.evaluate(() => {
    document.documentElement.lang = "";
    document.getElementById("workers").style.width = "361px";
  });
  assert.match((await findings(page)).join(), /html-has-lang/);
  assert.equal(await fits(page), false);
});

scenario("the colour scheme is the system's", async (test) => {
  const source = await feed(test, 2);
  const light = await watch(test, source, { scheme: "light" }), dark = await watch(test, source, { scheme: "dark" });
  const back = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
  assert.ok((await back(light)).every((part) => part > 200));
  assert.ok((await back(dark)).every((part) => part < 50));
});

/** What of the workers' panels cannot be read. */
const unreadable = (page) => page.evaluate(() => {
  const found = [];
  for (const panel of document.querySelectorAll("#workers article")) {
    const shown = panel.getBoundingClientRect(), texts = [...panel.querySelectorAll("h3, .rate, dt, dd")];
    if (texts.length !== 16 || panel.querySelectorAll("svg").length !== 2) found.push("a figure is missing");
    const boxes = texts.map((text) => {
      const range = document.createRange();
      range.selectNodeContents(text);
      return [text.textContent.replaceAll("\n", ""), range.getBoundingClientRect()];
    });
    for (const [name, box] of boxes) {
      if (!box.width || box.left < shown.left || box.right > shown.right || box.bottom > shown.bottom + 1) found.push(`"${name}" is not within its panel`);
      for (const [other, two] of boxes) {
        const over = box !== two && box.left < two.right && two.left < box.right && box.top < two.bottom - 3 && two.top < box.bottom - 3;
        if (over) found.push(`"${name}" is over "${other}"`);
      }
    }
  }
  return found;
});

scenario("cores at work are one screen, 64 too, and all that a panel has can be read", async (test) => {
  for (const cores of [2, 8, 16, 64]) {
    const page = await watch(test, await feed(test, cores));
    await says(page, WELL);
    assert.equal(await page.locator("#workers article").count(), cores);
    const height = await page.evaluate(() => document.documentElement.scrollHeight);
    assert.ok(height <= WIDE.height, `${cores} cores are ${height} high`);
    for (const viewport of VIEWPORTS) {
      await page.setViewportSize(viewport);
      assert.deepEqual((await unreadable(page)).slice(0, 5), [], `${cores} cores, ${viewport.width} wide`);
    }
    // It is a server at work: its numbers are large.
    assert.match(await page.locator("#workers article .number").first().textContent(), /^\d\d,\d\d\d$/);
    await page.evaluate(() => { document.querySelector("#workers dd").textContent = "a text that has no room in its place, wherever it begins and ends"; });
    await page.setViewportSize(WIDE);
    if (cores > 8) assert.notDeepEqual(await unreadable(page), []);
  }
});

scenario("a stream that ends as planned is not a loss, and one that ends otherwise is", async (test) => {
  const source = await feed(test, 2);
  const page = await watch(test, source, { expected: /net::ERR_/ });
  await says(page, WELL);
  const said = await listen(page);
  for (const opened of [2, 3]) {
    source.end("retry: 100\nevent: renew\ndata: this stream is over; connect again\n\n");
    await until(() => source.opened === opened && source.watchers.size === 1, "the page to come back");
    source.play(1);
    await shown(page, source.last);
  }
  assert.deepEqual(await said(), ["All is well."]);
  source.end();
  await says(page, /^Lost the server/);
  await until(() => source.watchers.size === 1, "the page to come back");
  source.play(1);
  await says(page, WELL);
});

scenario("the keyboard is enough", async (test) => {
  const source = await feed(test, 2);
  const page = await watch(test, source);
  const button = page.getByRole("button", { name: "Pause" }), figure = () => page.locator("#welcomed").textContent();
  await page.keyboard.press("Tab");
  assert.ok(await button.evaluate((node) => node === document.activeElement), "the button is not the first stop");
  assert.equal(await button.evaluate((node) => getComputedStyle(node).outlineStyle), "solid");
  const next = async () => {
    source.play(1);
    await shown(page, source.last);
    return figure();
  };
  const before = await figure();
  assert.notEqual(await next(), before);
  await page.keyboard.press("Enter");
  assert.equal(await button.getAttribute("aria-pressed"), "true");
  const held = await figure();
  assert.equal(await next(), held);
  // What is wrong is said all the same.
  const ill = later(source.last, 0);
  ill.workers[0].silent_seconds = 3;
  source.send(ill);
  await says(page, /^Worker 0 is silent\.$/);
  await page.keyboard.press("Space");
  assert.equal(await button.getAttribute("aria-pressed"), "false");
  assert.notEqual(await figure(), held);
  // There is nothing else to stop at.
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement === document.body), true);
});

scenario("a screen reader finds all of it by its role and name, and hears only what changes the state", async (test) => {
  const source = await feed(test, 2);
  const page = await watch(test, source);
  for (const [role, name] of [
    ["main"], ["status"], ["button", "Pause"], ["heading", "tallyring"], ["heading", "Workers"], ["table", "Outcomes"],
    ["columnheader", "per second"], ["rowheader", /^welcomed/], ["region", "Visits"], ["region", /^Counter 127/],
    ["article", "worker 0, core 0"], ["article", "worker 1, core 1"], ["term"], ["definition"], ["img", /^visits in the last two minutes, at most [\d,]+ a second$/],
  ]) {
    assert.ok(await page.getByRole(role, { name, exact: true }).count(), `no ${role} ${name}`);
  }
  // As the browser tells it: one live region.
  const session = await page.context().newCDPSession(page);
  const { nodes } = await session.send("Accessibility.getFullAXTree");
  const live = nodes.filter(({ properties }) => properties?.some(({ name, value }) => name === "live" && value.value !== "off"));
  const roles = live.filter(({ ignored }) => !ignored).map(({ role }) => role.value);
  assert.deepEqual([...new Set(roles)].filter((role) => !/Text/.test(role)), ["status"]);
  const said = await listen(page);
  source.play(20);
  await shown(page, source.last);
  assert.deepEqual(await said(), ["All is well."]);
  for (const seconds of [3, 3.5, 4]) {
    const ill = later(source.last, 0);
    ill.workers[0].silent_seconds = seconds;
    source.send(ill);
    await shown(page, ill);
  }
  assert.deepEqual(await said(), ["All is well.", "Worker 0 is silent."]);
});
