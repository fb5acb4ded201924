// Feeds for the live page: what a real server sent, gone on with from sample to sample, for states that are hard to
// reach here, such as 64 cores at work.

import { once } from "node:events";
import http from "node:http";

/** Adds the counts of an object to those of another one, however deep they are. */
function add(to, from) {
  for (const [name, value] of Object.entries(from)) {
    if (Array.isArray(value)) value.forEach((count, place) => { to[name][place] += count; });
    else if (typeof value === "object" && value) add(to[name], value);
    else if (typeof value === "number") to[name] += value;
  }
}

/** Counts set to zero. */
const nothing = (counts) => JSON.parse(JSON.stringify(counts), (_, value) => (typeof value === "number" ? 0 : value));

/** Half a second later: each worker has had its visits, the busiest ones 20,000 a second. */
export function later(sample, step) {
  const next = structuredClone(sample);
  next.time_seconds += 0.5;
  next.uptime_seconds += 0.5;
  next.workers.forEach((worker, place) => {
    worker.core = place;
    const visits = Math.round(8500 + 1500 * Math.sin(step / 20 + place) - (place % 7) * 900);
    worker.visits.welcomed += visits;
    worker.visits.in_flight = 1000 + place;
    worker.connections.open = 2000 + place;
    worker.connections.accepted = worker.connections.open;
    worker.cpu.user_seconds += 0.5 * (0.3 + (place % 5) / 20);
    worker.cpu.system_seconds += 0.5 * (0.4 + (place % 3) / 10);
    const [upstream] = worker.upstreams;
    Object.assign(upstream, { connections: 1024, idle: 24, queued: 128 });
    for (const durations of [worker.durations, upstream.durations]) {
      durations.count += visits;
      durations.buckets[6] += Math.floor(visits * 0.6);
      durations.buckets[12] += Math.ceil(visits * 0.4);
    }
  });
  const counts = ["visits", "connections", "durations"];
  for (const name of counts) next.totals[name] = nothing(next.totals[name]);
  for (const worker of next.workers) for (const name of counts) add(next.totals[name], worker[name]);
  for (const [place, counter] of next.counters.entries()) {
    for (const name of ["connections", "idle", "queued", "durations"]) {
      const sums = { [name]: nothing(counter[name]) };
      next.workers.forEach((worker) => add(sums, { [name]: worker.upstreams[place][name] }));
      counter[name] = sums[name];
    }
  }
  return next;
}

/** Serves the page of a real server, with events that the test sends. */
export class Feed {
  static async start(test, admin) {
    const page = await fetch(admin);
    const self = new Feed();
    Object.assign(self, { body: await page.text(), watchers: new Set(), last: null, opened: 0 });
    self.policy = page.headers.get("content-security-policy");
    self.server = http.createServer((request, response) => self.answer(request, response));
    self.server.listen(0, "127.0.0.1");
    await once(self.server, "listening");
    self.url = `http://127.0.0.1:${self.server.address().port}`;
    test.after(() => {
      self.server.close();
      self.server.closeAllConnections();
    });
    return self;
  }

  answer(request, response) {
    if (request.url === "/") {
      response.writeHead(200, { "content-type": "text/html; charset=utf-8", "content-security-policy": this.policy });
      response.end(this.body);
    } else if (request.url === "/events") {
      response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
      response.flushHeaders();
      this.opened += 1;
      this.watchers.add(response);
      response.on("close", () => this.watchers.delete(response));
      if (this.last) response.write(event(this.last));
    } else {
      response.writeHead(404).end();
    }
  }

  send(sample) {
    this.last = sample;
    this.watchers.forEach((watcher) => watcher.write(event(sample)));
  }

  /** Sends half a second more, so many times. */
  play(steps) {
    for (let step = 0; step < steps; step++) this.send(later(this.last, step));
  }

  /** Ends all streams, after this text. */
  end(text = "") {
    this.watchers.forEach((watcher) => watcher.end(text));
  }
}

const event = (sample) => `retry: 100\ndata: ${JSON.stringify(sample)}\n\n`;
