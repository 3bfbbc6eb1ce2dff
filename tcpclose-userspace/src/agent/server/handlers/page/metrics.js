// Parses Prometheus' text format as the agent writes it, and computes rates from two scrapes. Does not use the page.

const DURATIONS = "tcpclose_state_duration_seconds_bucket";
const SUMS = "tcpclose_state_duration_seconds_sum";
const UNESCAPED = { n: "\n", "\\": "\\", '"': '"' };

/** One scrape: every sample of `text`. `at`: milliseconds of a monotonic clock. */
export class Scrape {
  constructor(text, at) {
    this.at = at;
    this.families = new Map();
    for (const line of text.split("\n")) {
      if (line === "" || line.startsWith("#")) continue;
      const end = line.lastIndexOf(" ");
      const open = line.indexOf("{");
      const name = line.slice(0, open < 0 ? end : open);
      const labels = {};
      if (open >= 0) {
        for (const [, key, value] of line.slice(open, end).matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
          labels[key] = value.replace(/\\(.)/g, (_, character) => UNESCAPED[character] ?? character);
        }
      }
      const sample = { series: line.slice(0, end), labels, value: Number(line.slice(end + 1)) };
      const family = this.families.get(name);
      if (family) family.push(sample);
      else this.families.set(name, [sample]);
    }
  }

  /** The samples of `name` that have all of `labels`. */
  select(name, labels = {}) {
    const wanted = Object.entries(labels);
    const family = this.families.get(name) ?? [];
    return family.filter((sample) => wanted.every(([key, value]) => sample.labels[key] === value));
  }

  /** Their sum; 0 where there is none. */
  sum(name, labels) {
    return this.select(name, labels).reduce((sum, sample) => sum + sample.value, 0);
  }

  has(name) {
    return this.families.has(name);
  }

  /** When the agent began: tells one agent from the next. */
  get began() {
    return this.sum("process_start_time_seconds");
  }
}

/** The difference of two scrapes, `seconds` apart; without a first one, since the agent began. */
export class Span {
  constructor(before, now, seconds) {
    this.before = before;
    this.now = now;
    this.seconds = seconds;
    this.earlier = new Map();
  }

  /** How much each series of a counter rose: samples like a scrape's. */
  rises(name, labels) {
    if (!this.earlier.has(name)) {
      const samples = this.before?.select(name) ?? [];
      this.earlier.set(name, new Map(samples.map((sample) => [sample.series, sample.value])));
    }
    const earlier = this.earlier.get(name);
    // A new series has risen from 0.
    return this.now.select(name, labels).map((sample) => {
      return { ...sample, value: Math.max(0, sample.value - (earlier.get(sample.series) ?? 0)) };
    });
  }

  /** A second; undefined while there is nothing to tell it by. */
  rate(name, labels) {
    if (!(this.seconds > 0)) return undefined;
    return this.rises(name, labels).reduce((sum, sample) => sum + sample.value, 0) / this.seconds;
  }

  /** The median of the durations with `labels`, seconds; undefined if there is none. */
  median(labels) {
    return median(this.rises(DURATIONS, labels), total(this.rises(SUMS, labels)));
  }
}

/** The sum of `samples`. */
function total(samples) {
  return samples.reduce((sum, { value }) => sum + value, 0);
}

/** The median of a histogram's `samples`, whose durations add up to `sum` seconds; several series are added up. */
function median(samples, sum) {
  const buckets = new Map();
  for (const { labels: { le }, value } of samples) {
    const bound = le === "+Inf" ? Infinity : Number(le);
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return quantile(0.5, [...buckets].sort(([a], [b]) => a - b), sum);
}

/** Where a quantile lies: `lower` and `upper` are proven by its bucket and by the sum of all, as the agent does it; `value` is where the
 * straight line between them has it. */
export function quantile(q, buckets, sum) {
  const all = buckets.at(-1)?.[1] ?? 0;
  if (all === 0) return undefined;
  const parts = buckets.map(([to, count], at) => {
    const [from, below] = at > 0 ? buckets[at - 1] : [0, 0];
    return { from, to, count: count - below, below };
  });
  const rank = Math.max(1, Math.ceil(q * all));
  const { from, to, count, below } = parts.find((part) => part.below + part.count >= rank);
  const nth = rank - below;
  const others = parts.filter((part) => part.below !== below && part.count > 0);
  const least = others.reduce((seconds, part) => seconds + part.from * part.count, 0);
  const most = others.reduce((seconds, part) => seconds + part.to * part.count, 0);
  const upper = Math.max(from, Math.min(to, (sum - least - (nth - 1) * from) / (count - nth + 1)));
  const atLeast = to === Infinity ? from : (sum - most - (count - nth) * to) / nth;
  const lower = Math.min(upper, Math.max(from, atLeast));
  return { value: lower + ((upper - lower) * nth) / count, lower, upper };
}

/** The pairs of side and port that have any series of the sockets', with what is known of each. Each sample is looked at
 * once: an agent may have thousands of pairs. */
export function ports(span) {
  const rows = new Map();
  const row = ({ side, port }) => {
    const key = `${side} ${port}`;
    if (!rows.has(key)) {
      rows.set(key, { key, side, port, sockets: {}, stuck: 0, possibly: 0, risen: 0, waits: [], waited: 0 });
    }
    return rows.get(key);
  };
  const { now } = span;
  for (const { labels, value } of now.select("tcpclose_sockets")) {
    row(labels).sockets[labels.state] = value;
  }
  for (const { labels, value } of now.select("tcpclose_stuck_sockets")) row(labels).stuck += value;
  for (const { labels, value } of now.select("tcpclose_stuck_sockets_unproven")) row(labels).possibly += value;
  for (const { labels, value } of now.select("tcpclose_oldest_socket_age_seconds", { state: "close_wait" })) {
    row(labels).oldest = value;
  }
  for (const { labels, value } of span.rises("tcpclose_closes_total")) row(labels).risen += value;
  const waits = span.rises(DURATIONS, { state: "close_wait" });
  for (const sample of waits) row(sample.labels).waits.push(sample);
  const sums = span.rises(SUMS, { state: "close_wait" });
  for (const { labels, value } of sums) row(labels).waited += value;
  for (const of of rows.values()) {
    of.rate = span.seconds > 0 ? of.risen / span.seconds : undefined;
    of.median = median(of.waits, of.waited);
  }
  return [...rows.values()];
}
