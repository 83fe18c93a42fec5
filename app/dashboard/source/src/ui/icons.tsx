// Small shapes beside words: what a status is never depends on its colour alone.

const PATHS = {
  queued: "M8 4v4l2.5 2M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0Z",
  running: "M5 3.5v9l7.5-4.5z",
  paused: "M5.5 3.5v9M10.5 3.5v9",
  succeeded: "m3 8.5 3.5 3.5L13 4.5",
  failed: "m4 4 8 8m0-8-8 8",
  cancelled: "M4 12 12 4M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0Z",
  warn: "M8 2.5 14.5 13.5H1.5ZM8 6.5v3.2M8 11.6v.4",
  info: "M8 7.5v4M8 4.6v.4M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0Z",
  upload: "M8 11V3m0 0L4.5 6.5M8 3l3.5 3.5M2.5 10.5v2a1 1 0 0 0 1 1h9a1 1 0 0 0 1-1v-2",
  download: "M8 3v8m0 0L4.5 7.5M8 11l3.5-3.5M2.5 12v.5a1 1 0 0 0 1 1h9a1 1 0 0 0 1-1V12",
  menu: "M2.5 4.5h11M2.5 8h11M2.5 11.5h11",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg
      class="icon"
      viewBox="0 0 16 16"
      fill="none"
      stroke="currentColor"
      stroke-width="1.6"
      stroke-linecap="round"
      stroke-linejoin="round"
      aria-hidden="true"
    >
      <path d={PATHS[name]} />
    </svg>
  );
}
