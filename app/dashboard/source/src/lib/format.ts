// Numbers, sizes and times as people read them.

const DASH = "–";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined) return DASH;
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return whole(value);
  const size = Math.abs(value);
  if (size >= 1000 && size < 1e6) return whole(Math.round(value));
  const text = size >= 1e6 || size < 1e-3 ? value.toExponential(2) : value.toPrecision(digits);
  return text
    .replace("-", "−")
    .replace(/\.?0+(e|$)/, "$1")
    .replace("e+", "e");
}

export function signed(value: number): string {
  return value > 0 ? `+${number(value)}` : number(value);
}

export function whole(value: number): string {
  return value.toLocaleString("en").replace("-", "−");
}

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return DASH;
  const power = Math.min(Math.floor(Math.log2(Math.max(value, 1)) / 10), UNITS.length - 1);
  const scaled = value / 1024 ** power;
  return `${power && scaled < 100 ? scaled.toFixed(1) : Math.round(scaled)} ${UNITS[power]}`;
}

export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return DASH;
  const total = Math.max(0, Math.round(seconds));
  if (total < 60) return `${total} s`;
  const [days, hours, minutes] = [
    Math.floor(total / 86400),
    Math.floor(total / 3600) % 24,
    Math.floor(total / 60) % 60,
  ];
  if (days) return `${days} d ${hours} h`;
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${total % 60} s`;
}

/** A duration that is a guess: no finer than it deserves. */
export function roughly(seconds: number): string {
  if (seconds < 90) return duration(seconds);
  const [rough, fine] = duration(Math.round(seconds / 60) * 60).split(/(?<=[a-z]) /);
  return fine && !/^0 |s$/.test(fine) ? `${rough} ${fine}` : rough!;
}

export function ago(at: number, now = Date.now() / 1000): string {
  const seconds = now - at;
  if (seconds < 5) return "just now";
  const [rough] = duration(seconds).split(/(?<=[a-z]) /);
  return `${rough} ago`;
}

export function clock(at: number): string {
  return new Date(at * 1000).toLocaleTimeString("en-GB");
}

export function moment(at: number | null): string {
  if (at === null) return DASH;
  return new Date(at * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

export function percent(share: number): string {
  return `${Math.floor(share * 100)} %`;
}

export function count(amount: number, one: string, many = `${one}s`): string {
  return `${whole(amount)} ${amount === 1 ? one : many}`;
}
