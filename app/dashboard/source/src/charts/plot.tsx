// uPlot in a component: it follows its box, its data and the page's colours.
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

import { colour, useColours } from "../lib/theme";
import type { Drawing } from "./traces";

interface Props {
  drawing: Drawing;
  log: boolean;
  height: number;
  format: (value: number) => string;
  /** Charts with one key move their cursors and zoom together. */
  together: string;
  label: string;
  onPlot: (plot: uPlot | null) => void;
  onCursor: (row: number | null) => void;
  onZoom: (zoomed: boolean) => void;
}

const FONT = '11px system-ui, "Segoe UI", sans-serif';

export function Plot(props: Props) {
  const box = useRef<HTMLDivElement>(null);
  const current = useRef<uPlot | null>(null);
  const colours = useColours();
  const { drawing, log, height } = props;
  const { data, series, bands } = drawing;
  const shape = JSON.stringify([series, bands]);
  useEffect(() => {
    const parent = box.current!;
    const plot = new uPlot({ ...optionsFor(props, parent.clientWidth), series, bands }, data, parent);
    current.current = plot;
    props.onPlot(plot);
    const observer = new ResizeObserver(() => plot.setSize({ width: parent.clientWidth, height }));
    observer.observe(parent);
    return () => {
      observer.disconnect();
      current.current = null;
      plot.destroy();
      props.onPlot(null);
    };
  }, [shape, log, height, colours]);
  useEffect(() => {
    if (current.current && current.current.data !== data) refresh(current.current, data);
  }, [data]);
  return (
    <div
      ref={box}
      class="plot"
      tabIndex={0}
      role="group"
      aria-label={`${props.label} Arrow keys walk along the steps, plus and minus zoom, Escape shows all.`}
      onKeyDown={(event) => current.current && steer(current.current, props.together, event)}
    />
  );
}

/** Put new data in; what was zoomed into stays in view. */
function refresh(plot: uPlot, data: uPlot.AlignedData): void {
  const view = isZoomed(plot) ? viewOf(plot) : null;
  plot.batch(() => {
    plot.setData(data, !view);
    if (view) plot.setScale("x", view);
  });
}

function viewOf(plot: uPlot): { min: number; max: number } | null {
  const { min, max } = plot.scales.x ?? {};
  return typeof min === "number" && typeof max === "number" ? { min, max } : null; // not before it is drawn
}

function isZoomed(plot: uPlot): boolean {
  const steps = plot.data[0];
  const view = viewOf(plot);
  if (!view || steps.length < 2) return false;
  return view.min > steps[0]! || view.max < steps[steps.length - 1]!;
}

/** Let go of the zoom, in all charts that move together. */
export function showAll(together: string): void {
  for (const plot of uPlot.sync(together).plots) {
    const steps = plot.data[0];
    if (steps.length) plot.setScale("x", { min: steps[0]!, max: steps[steps.length - 1]! });
  }
}

function steer(plot: uPlot, together: string, event: KeyboardEvent): void {
  const rows = plot.data[0].length;
  const row = plot.cursor.idx ?? -1;
  const pace = Math.max(1, Math.round(rows / 100));
  if (event.key === "ArrowRight") point(plot, Math.min(row + pace, rows - 1));
  else if (event.key === "ArrowLeft") point(plot, Math.max(row < 0 ? rows - 1 : row - pace, 0));
  else if (event.key === "+" || event.key === "=") zoom(plot, together, 0.5, plot.cursor.idx ?? null);
  else if (event.key === "-") zoom(plot, together, 2, plot.cursor.idx ?? null);
  else if (event.key === "Escape") showAll(together);
  else return;
  event.preventDefault();
}

function point(plot: uPlot, row: number): void {
  const left = plot.valToPos(plot.data[0][row] ?? 0, "x");
  plot.setCursor({ left, top: plot.over.clientHeight / 2 });
}

/** Show less of the steps, or more, around a row that is in view or else around the middle. */
export function zoom(plot: uPlot, together: string, factor: number, row: number | null): void {
  const steps = plot.data[0];
  const seen = viewOf(plot);
  if (!seen) return;
  const { min, max } = seen;
  const at = row === null ? undefined : steps[row];
  const middle = at === undefined || at < min || at > max ? (min + max) / 2 : at;
  const [first, last] = [steps[0]!, steps[steps.length - 1]!];
  const view = {
    min: Math.max(first, middle - (middle - min) * factor),
    max: Math.min(last, middle + (max - middle) * factor),
  };
  if (view.max > view.min) for (const each of uPlot.sync(together).plots) each.setScale("x", view);
}

function optionsFor(props: Props, width: number): Omit<uPlot.Options, "series"> {
  const axis = {
    stroke: colour("--muted"),
    font: FONT,
    grid: { stroke: colour("--grid"), width: 1 },
    ticks: { show: false },
  };
  return {
    width,
    height: props.height,
    padding: [8, 12, 0, 0],
    legend: { show: false },
    scales: { x: { time: false }, y: props.log ? logScale() : { range: roomy } },
    axes: [
      {
        ...axis,
        size: 26,
        gap: 4,
        incrs: [1, 2, 5]
          .flatMap((one) => [0, 1, 2, 3, 4, 5, 6].map((power) => one * 10 ** power))
          .sort((a, b) => a - b),
      },
      {
        ...axis,
        size: 58,
        gap: 6,
        values: (_, splits) => splits.map((split) => (split === null ? "" : props.format(split))),
      },
    ],
    cursor: {
      sync: { key: props.together, setSeries: false, scales: ["x", null] },
      drag: { x: true, y: false },
      points: { size: 7 },
    },
    hooks: {
      setCursor: [(plot) => props.onCursor(plot.cursor.idx ?? null)],
      setScale: [(plot, key) => key === "x" && props.onZoom(isZoomed(plot))],
    },
  };
}

function logScale(): uPlot.Scale {
  return { distr: 3, range: (_, min, max) => uPlot.rangeLog(min, max, 10, false) };
}

/** Leave some room above and below, also around a line that is flat. */
function roomy(_: uPlot, min: number, max: number): uPlot.Range.MinMax {
  if (min === null || max === null) return [0, 1];
  const room = (max - min) * 0.06 || Math.abs(max) * 0.1 || 1;
  const floor = min >= 0 && min - room < 0 ? 0 : min - room;
  return [floor, max + room];
}
