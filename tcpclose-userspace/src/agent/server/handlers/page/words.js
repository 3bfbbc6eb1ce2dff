// Numbers for people. An unknown number is a dash.

const DASH = "–";

/** 1234567 → 1 234 567, with narrow no-break spaces. */
export function count(n) {
  return n === undefined ? DASH : String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** The same, short enough for a box: 12.3M from ten millions on. */
export function short(n) {
  return n >= 1e7 ? `${(n / 1e6).toPrecision(n >= 1e9 ? 4 : 3)}M` : count(n);
}

/** Two digits of a number below a thousand: 0.54, 3.2, 41. */
function digits(n) {
  return n.toFixed(n < 0.995 ? 2 : n < 9.95 ? 1 : 0);
}

/** Per second: 0.04/s, 3.2/s, 12/s, 1.2k/s. */
export function rate(n) {
  if (n === undefined) return DASH;
  if (n === 0) return "0/s";
  if (n < 0.01) return "<0.01/s";
  if (n < 999.5) return `${digits(n)}/s`;
  return n < 999_500 ? `${(n / 1e3).toPrecision(3)}k/s` : `${(n / 1e6).toPrecision(3)}M/s`;
}

/** 0.54 ms, 41 ms, 2.5 s, 61 s, 12 min, 3.1 h; `write` writes the number. */
function time(seconds, write) {
  if (seconds < 0.9995) return `${write(seconds * 1e3)} ms`;
  if (seconds < 120) return `${write(seconds)} s`;
  if (seconds < 7200) return `${write(seconds / 60)} min`;
  return seconds < 172_800 ? `${write(seconds / 3600)} h` : `${write(seconds / 86_400)} d`;
}

/** A time to about two digits: 41 ms. */
export function roughly(seconds) {
  return seconds === undefined ? DASH : time(seconds, digits);
}

/** An estimated time: ≈41 ms. */
export function about(seconds) {
  return seconds === undefined ? DASH : `≈${roughly(seconds)}`;
}

/** A quantile with the bounds of its bucket: ≈45 s (30 s to 59 s). */
export function between(quantile) {
  if (quantile === undefined) return DASH;
  const [lower, upper] = [quantile.lower, quantile.upper].map((bound) => time(bound, String));
  return quantile.upper === Infinity ? `over ${lower}` : `${about(quantile.value)} (${lower} to ${upper})`;
}

/** A proven age, rounded down as in `tcpclose stuck`: 9.9s, 45s, 2m 5s, 3h 10m, 4d 2h. */
export function age(seconds) {
  if (seconds === undefined) return DASH;
  const whole = Math.floor(seconds);
  const two = (big, unit, small, rest) => (small === 0 ? `${big}${unit}` : `${big}${unit} ${small}${rest}`);
  if (whole < 10) return `${(Math.floor(seconds * 10) / 10).toFixed(1)}s`;
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return two(Math.floor(whole / 60), "m", whole % 60, "s");
  if (whole < 86_400) return two(Math.floor(whole / 3600), "h", Math.floor(whole / 60) % 60, "m");
  return two(Math.floor(whole / 86_400), "d", Math.floor(whole / 3600) % 24, "h");
}

/** close_wait → CLOSE-WAIT, as in the RFCs. */
export function state(name) {
  return name.toUpperCase().replaceAll("_", "-");
}
