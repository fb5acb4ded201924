// What the tests of the live page stand on: real servers, visitors and a browser.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { chromium } from "playwright-core";

/** How long anything may take that has to happen. */
export const PATIENCE = 60_000;
export const WIDE = { width: 1440, height: 900 };
export const NARROW = { width: 360, height: 740 };

const program = process.env.TALLYRING;
if (!program) throw new Error("TALLYRING has to name the program");

/** A test. What it hands to `after` runs at its end, the last first, whatever happened. */
export function scenario(name, body) {
  test(name, async () => {
    const ends = [], faults = [], done = new AbortController();
    const attempt = (step) => step().catch((fault) => faults.push(fault));
    const patience = pause(3 * PATIENCE, null, done).then(() => { throw new Error("it does not end"); });
    await attempt(() => Promise.race([body({ after: (end) => ends.unshift(end) }), patience]));
    done.abort();
    for (const end of ends) await attempt(async () => end());
    if (faults.length > 1) console.error(...faults);
    if (faults.length) throw faults[0];
  });
}

/** A program that was started. It is killed when the test ends. */
export class Program {
  static async start(test, args, ready) {
    const directory = await mkdtemp(path.join(tmpdir(), "tallyring-browser-"));
    const child = spawn(program, [...args, "--data-dir", directory, "--log-format", "text"], {
      env: { PATH: process.env.PATH },
      stdio: ["ignore", "ignore", "pipe"],
    });
    const self = new Program();
    Object.assign(self, { child, directory, log: "", ended: once(child, "exit") });
    test.after(async () => {
      await self.kill("SIGKILL");
      await rm(directory, { recursive: true, force: true });
    });
    child.stderr.setEncoding("utf8").on("data", (text) => { self.log += text; });
    await until(() => ready.test(self.log) || child.exitCode !== null, `${args.join(" ")} to start`);
    if (child.exitCode !== null) throw new Error(`${args.join(" ")} did not start: ${self.log}`);
    return self;
  }

  /** What the log says behind these words. */
  said(words) {
    const match = this.log.match(new RegExp(`${words}(\\S+?)[;,]?(\\s|$)`));
    if (!match) throw new Error(`no "${words}" in ${this.log}`);
    return match[1];
  }

  signal(name) {
    if (!this.child.kill(name)) throw new Error(`cannot send ${name}`);
  }

  /** Ends it, unless it has ended. */
  async kill(name) {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      this.child.kill("SIGCONT");
      this.child.kill(name);
    }
    await this.ended;
  }
}

/** A site with its admin listener; `admin` and `site` are URLs. */
export async function serve(test, args = []) {
  const admin = args.includes("--admin") ? [] : ["--admin", "127.0.0.1:0"];
  const own = args.includes("--counter") ? [] : ["--counter-listen", "off"];
  const server = await Program.start(test, ["serve", "--listen", "127.0.0.1:0", ...admin, ...own, ...args], /admin on \S+\s/);
  return Object.assign(server, { site: server.said("serves "), admin: server.said("admin on ") });
}

/** A counter alone, on an address that no client's connection is given by chance. */
export async function counter(test, address = "127.0.0.77:0") {
  const started = await Program.start(test, ["counter", "--listen", address, "--store", "memory"], /http:\S+\s/);
  const url = started.log.match(/http:\/\/(127\.0\.0\.77:\d+)/);
  return Object.assign(started, { url: `${url[0]}/counter`, address: url[1] });
}

/** Waits for a condition. */
export async function until(condition, what) {
  const patience = AbortSignal.timeout(PATIENCE);
  while (!(await condition())) {
    if (patience.aborted) throw new Error(`waited in vain for ${what}`);
    await pause(20);
  }
}

/** Visitors who come without an end, each over a connection of its own. */
export class Visitors {
  /** `rest` is how long each of them waits between two visits, in milliseconds, at a time since the start. */
  static start(test, site, number = 16, rest = () => 5) {
    const self = new Visitors();
    Object.assign(self, { site, agents: [], leaving: false, began: Date.now() });
    for (let one = 0; one < number; one++) {
      const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
      self.agents.push(agent);
      self.visit(agent, rest);
    }
    test.after(() => self.leave());
    return self;
  }

  async visit(agent, rest) {
    while (!this.leaving) {
      await new Promise((done) => {
        const request = http.get(this.site, { agent }, (response) => response.resume().on("close", done));
        request.on("error", done);
      });
      await pause(rest(Date.now() - this.began));
    }
  }

  leave() {
    this.leaving = true;
    this.agents.forEach((agent) => agent.destroy());
  }
}

/** The browser of a file of tests. */
export async function launch() {
  const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
  // Its profile is a new directory, which goes with it.
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", headless: true, args });
}

/**
 * The live page in a window of its own. At the end of the test it must not have asked anybody else for anything, and
 * the console must be empty but for what matches `expected`.
 */
export async function open(test, browser, admin, { viewport = WIDE, scheme = "light", expected = null } = {}) {
  const context = await browser.newContext({ viewport, colorScheme: scheme, reducedMotion: "reduce" });
  const page = await context.newPage();
  const faults = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !expected?.test(message.text())) faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(admin).origin) faults.push(`asks ${request.url()}`);
  });
  test.after(async () => {
    await context.close();
    if (faults.length) throw new Error(`the page has faults:\n${faults.join("\n")}`);
  });
  page.setDefaultTimeout(PATIENCE);
  await page.goto(admin);
  await page.waitForFunction(() => samples.length > 0);
  return page;
}

/** The text at the top, once it is this. */
export function says(page, pattern) {
  return page.waitForFunction(
    ([source, flags]) => new RegExp(source, flags).test(document.getElementById("status").textContent),
    [pattern.source, pattern.flags],
  );
}

/** Collects all that the line at the top says from now on. */
export async function listen(page) {
  await page.evaluate(() => {
    const line = document.getElementById("status");
    window.said = [line.textContent];
    new MutationObserver(() => window.said.push(line.textContent)).observe(line, { childList: true, characterData: true, subtree: true });
  });
  return () => page.evaluate(() => window.said);
}

/** A number of the page. */
export const number = async (page, selector) =>
  Number((await page.locator(selector).first().textContent()).replaceAll(",", ""));
