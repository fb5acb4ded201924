// The live page in a real browser, with real servers.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdir, readFile, rename } from "node:fs/promises";
import http from "node:http";
import net from "node:net";
import path from "node:path";
import { after, before } from "node:test";
import { Visitors, counter, launch, listen, number, open, says, scenario, serve, until } from "./harness.mjs";

let browser;
before(async () => { browser = await launch(); });
after(() => browser.close());

const WELL = /^All is well\.$/, LOST = /^Lost the server at \d\d:\d\d:\d\d\. Trying again\.$/;
// The browser itself reports a server that does not answer, or refuses.
const LOSS = /Failed to load resource|net::ERR_/;

/** The server's uptime, as the page knows it, at the moment when a panel has this class or has not. */
const turned = (page, selector, name, wanted) => page.evaluate(([selector, name, wanted]) => new Promise((done) => {
  const panel = document.querySelector(selector);
  const look = () => panel.classList.contains(name) === wanted && done(newest().uptime_seconds);
  new MutationObserver(look).observe(panel, { attributes: true });
  look();
}), [selector, name, wanted]);
const uptime = (page) => page.evaluate(() => newest().uptime_seconds);

scenario("figures move under load, and nothing is said that is wrong", async (test) => {
  const server = await serve(test, ["--workers", "2"]);
  const page = await open(test, browser, server.admin);
  await says(page, /^Ready\. No visit yet\.$/);
  assert.equal(await page.locator("#workers article").count(), 2);
  Visitors.start(test, server.site);
  await says(page, WELL);
  const said = await listen(page);
  // Two looks at a number that differ, above a first one.
  const grows = async (selector) => {
    const first = await number(page, selector);
    for (let seen = first; seen <= first; seen = await number(page, selector)) await uptime(page);
  };
  for (const selector of ["#welcomed", "#welcomed", "#visits-rate"]) {
    if (selector === "#welcomed") await grows(selector);
    else await until(async () => (await number(page, selector)) > 0, selector);
  }
  for (const place of [1, 2]) {
    const worker = page.locator(`#workers article:nth-child(${place})`);
    await until(async () => Number((await worker.locator(".number").textContent()).replaceAll(",", "")) > 0, "a worker's visits");
    await until(async () => / (ms|µs|s)$/.test(await worker.locator("dt:text-is('p99') + dd").textContent()), "a worker's p99");
    await until(async () => /user [1-9]\d* %/.test(await worker.locator("dt:text-is('CPU') + dd").textContent()), "a worker's CPU");
    await until(async () => Number(await worker.locator("dt:text-is('clients') + dd").textContent()) > 0, "a worker's clients");
    await until(async () => (await worker.locator("polyline").getAttribute("points")).split(" ").length > 4, "a worker's chart");
  }
  assert.equal(await number(page, "#erred"), 0);
  assert.match(await page.locator("#driver").textContent(), /^driver: (io_uring|epoll)/);
  assert.equal(await page.title(), "tallyring");
  assert.deepEqual(await said(), ["All is well."]);
});

scenario("the counter's panel turns within two seconds when it is killed, and turns back", async (test) => {
  const first = await counter(test);
  const server = await serve(test, ["--workers", "2", "--counter", first.url]);
  const page = await open(test, browser, server.admin);
  Visitors.start(test, server.site);
  await says(page, WELL);
  const panel = page.locator("#counters section");
  await panel.locator(".pill:text-is('works')").waitFor();
  const turns = turned(page, "#counters section", "bad", true);
  const killed = await uptime(page);
  await first.kill("SIGKILL");
  const took = (await turns) - killed;
  assert.ok(took <= 2, `it took ${took} s`);
  await says(page, /^The counter 127\.0\.0\.77:\d+ fails/);
  assert.equal(await panel.locator(".pill").textContent(), "fails");
  assert.match(await panel.textContent(), /open at \d of 2 workers/);
  assert.match(await page.title(), /^The counter .* fails/);
  await until(async () => (await number(page, "#erred")) > 0, "visits that erred");
  const back = turned(page, "#counters section", "bad", false);
  const restarted = await uptime(page);
  await counter(test, first.address);
  console.log(`turned after ${took.toFixed(1)} s, and back ${((await back) - restarted).toFixed(1)} s after the restart`);
  await panel.locator(".pill:text-is('works')").waitFor();
  await says(page, WELL);
});

scenario("a store that fails is named until it works again", async (test) => {
  const server = await serve(test, ["--workers", "1"]);
  const page = await open(test, browser, server.admin);
  const file = path.join(server.directory, "counter.redb");
  Visitors.start(test, server.site);
  await says(page, WELL);
  await rename(file, `${file}.away`);
  await says(page, /^The store of the bundled counter fails: its visitors get the sorry page\.$/);
  const panel = page.locator("#counters section");
  await panel.locator(".pill:text-is('fails')").waitFor();
  assert.match(await panel.locator("dt:text-is('store') + dd").textContent(), /^fails: .* was moved or deleted; put it back/);
  await until(async () => (await number(page, "dt:text-is('commits that failed') + dd")) > 0, "commits that failed");
  await rename(`${file}.away`, file);
  await says(page, WELL);
  assert.equal(await panel.locator("dt:text-is('store') + dd").textContent(), `redb:${file}`);
});

scenario("few visits that are not registered are told before the breaker opens", async (test) => {
  const gone = await counter(test);
  const server = await serve(test, ["--workers", "1", "--counter", gone.url, "--skip-counter-check"]);
  const page = await open(test, browser, server.admin);
  await fetch(server.site);
  await says(page, WELL);
  await gone.kill("SIGKILL");
  assert.equal(await (await fetch(server.site)).text(), "Error registering your visit");
  await says(page, /^The last visits were not registered\.$/);
  // It is still so when the visit is no longer of the last seconds.
  const since = await uptime(page);
  await page.waitForFunction((since) => newest().uptime_seconds > since + 7, since);
  await says(page, /^The last visits were not registered\.$/);
  await counter(test, gone.address);
  await until(async () => (await (await fetch(server.site)).text()) === "Welcome to my site!", "a welcome");
  await says(page, WELL);
});

scenario("a server that is killed is missed at once, and is shown again when it is back", async (test) => {
  const first = await serve(test, ["--workers", "1"]);
  const page = await open(test, browser, first.admin, { expected: LOSS });
  await fetch(first.site);
  await says(page, WELL);
  const said = await listen(page);
  await first.kill("SIGKILL");
  await says(page, LOST);
  assert.ok(await page.locator("body.old").count(), "the figures look as if they were new");
  await serve(test, ["--workers", "2", "--admin", new URL(first.admin).host]);
  await says(page, /^Ready\. No visit yet\.$/);
  assert.equal(await page.locator("#workers article").count(), 2);
  assert.equal(await page.locator("body.old").count(), 0);
  assert.equal((await said()).length, 3, await said());
});

scenario("a server that stops says so until it has stopped", async (test) => {
  const server = await serve(test, ["--workers", "1"]);
  const page = await open(test, browser, server.admin, { expected: LOSS });
  await fetch(server.site);
  await says(page, WELL);
  const said = await listen(page);
  // A head that is not whole keeps it from ending.
  const half = net.connect(new URL(server.site).port, "127.0.0.1");
  test.after(() => half.destroy());
  half.write("GET / HTTP/1.1\r\n");
  await until(async () => (await number(page, "#clients")) > 0, "the client");
  server.signal("SIGTERM");
  await says(page, /^The server is stopping/);
  // It has ended the stream, and refuses another one; the page goes on saying that it is stopping.
  await page.waitForFunction(() => source.readyState === EventSource.CLOSED);
  half.resume().end("Host: localhost\r\n\r\n");
  await says(page, /^The server has stopped\. Trying again\.$/);
  assert.equal((await said()).length, 3, await said());
  await server.ended;
});

scenario("a server that hangs is missed, and heard again when it goes on", async (test) => {
  const server = await serve(test, ["--workers", "1"]);
  const page = await open(test, browser, server.admin, { expected: LOSS });
  await fetch(server.site);
  await says(page, WELL);
  server.signal("SIGSTOP");
  await says(page, LOST);
  server.signal("SIGCONT");
  await says(page, WELL);
});

scenario("a silent worker is named", async (test) => {
  const server = await serve(test, ["--workers", "2"]);
  const page = await open(test, browser, server.admin);
  await fetch(server.site);
  await says(page, WELL);
  const tasks = `/proc/${server.child.pid}/task`;
  let thread;
  for (const task of await readdir(tasks)) {
    if ((await readFile(`${tasks}/${task}/comm`, "utf8")).trim() === "worker-1") thread = task;
  }
  // The thread is held where it is about to wait.
  const waits = "io_uring_enter,epoll_wait,epoll_pwait";
  const strace = spawn("strace", ["-p", thread, "-o", "/dev/null", "-e", `trace=${waits}`, "-e", `inject=${waits}:delay_enter=600000000`]);
  const released = once(strace, "exit");
  test.after(() => strace.kill());
  await says(page, /^Worker 1 is silent\.$/);
  const panel = page.locator("#workers article:nth-child(2)");
  assert.match(await panel.getAttribute("class"), /\bbad\b/);
  assert.match(await panel.locator(".rate").textContent(), /^silent \d+ s$/);
  assert.doesNotMatch(await page.locator("#workers article:nth-child(1)").getAttribute("class"), /\bbad\b/);
  strace.kill();
  await released;
  await says(page, WELL);
  assert.doesNotMatch(await panel.getAttribute("class"), /\bbad\b/);
});

scenario("a page too many says so, and gets its figures when another one leaves", async (test) => {
  const server = await serve(test, ["--workers", "1"]);
  await fetch(server.site);
  const page = await open(test, browser, server.admin, { expected: LOSS });
  await says(page, WELL);
  // It loses its place to others.
  const others = [];
  const watch = () => new Promise((done, failed) => {
    const request = http.get(`${server.admin}/events`, (response) => response.resume().on("error", () => {}) && done(response.statusCode));
    request.on("error", failed);
    others.push(request);
  });
  test.after(() => others.forEach((other) => other.on("error", () => {}).destroy()));
  for (let one = 0; one < 15; one++) assert.equal(await watch(), 200);
  assert.equal(await watch(), 503);
  await page.evaluate(() => source.close());
  await until(async () => (await watch()) === 200, "the page's place");
  await page.evaluate(() => watch());
  await says(page, /too many pages are open/);
  others.forEach((other) => other.on("error", () => {}).destroy());
  await says(page, WELL);
});
