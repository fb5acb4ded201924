// Takes the pictures of the live page in docs: a real server at work, which loses its counter for a while.
//   node screenshots.mjs DIRECTORY SECONDS

import { setTimeout as pause } from "node:timers/promises";
import { Visitors, counter, launch, open, says, serve } from "./harness.mjs";

const [directory, seconds] = process.argv.slice(2);
const ends = [], test = { after: (end) => ends.unshift(end) };
const browser = await launch();
try {
  const first = await counter(test);
  const server = await serve(test, ["--workers", "2", "--counter", first.url]);
  const viewport = { width: 1200, height: 520 };
  const pages = [];
  for (const scheme of ["light", "dark"]) pages.push([scheme, await open(test, browser, server.admin, { viewport, scheme })]);
  // More and fewer visitors in turn.
  Visitors.start(test, server.site, 24, (time) => 8 + 6 * Math.sin(time / 9000) + 3 * Math.sin(time / 1700));
  await pause(seconds * 450);
  await first.kill("SIGTERM");
  await pause(seconds * 60);
  await counter(test, first.address);
  await pause(seconds * 490);
  for (const [scheme, page] of pages) {
    await says(page, /^All is well\.$/);
    const { length } = await page.screenshot({ path: `${directory}/live-page-${scheme}.png`, fullPage: true });
    if (length > 150_000) throw new Error(`the picture has ${length} bytes`);
  }
} finally {
  for (const end of ends) await end();
  await browser.close();
}
