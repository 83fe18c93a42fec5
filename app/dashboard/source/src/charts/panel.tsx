// A chart with its title, legend and what can be taken from it.
import type { ComponentChildren } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";
import type uPlot from "uplot";

import { csv } from "../lib/csv";
import { save, saveText } from "../lib/download";
import { number, whole } from "../lib/format";
import { type Line, last } from "../lib/series";
import { useColours } from "../lib/theme";
import { Legend } from "./legend";
import { Plot, showAll, zoom } from "./plot";
import { pngOf } from "./png";
import { type Trace, draw } from "./traces";

interface Props {
  title: string;
  hint?: string;
  traces: Trace[];
  weight?: number;
  log?: boolean;
  height?: number;
  format?: (value: number) => string;
  together: string;
  /** What a saved file is called, without its ending. */
  filename: string;
  tools?: ComponentChildren;
}

export function Panel({
  title,
  hint,
  traces,
  weight = 0,
  log = false,
  height = 180,
  format = number,
  together,
  filename,
  tools,
}: Props) {
  const [row, setRow] = useState<number | null>(null);
  const [zoomed, setZoomed] = useState(false);
  const plot = useRef<uPlot | null>(null);
  const pointed = useRef<number | null>(null); // a finger that presses a button points at no row
  const colours = useColours();
  const drawing = useMemo(() => draw(traces, weight, log), [traces, weight, log, colours]);
  const point = (at: number | null) => {
    setRow(at);
    if (at !== null) pointed.current = at;
  };
  const closer = (factor: number) => plot.current && zoom(plot.current, together, factor, pointed.current);
  const png = () =>
    plot.current &&
    pngOf(plot.current, title, traces, drawing.names).then((image) => save(image, `${filename}.png`));
  return (
    <figure class="panel">
      <figcaption class="panel-head">
        <h3>{title}</h3>
        <div class="tools">
          {tools}
          <span class="zoom" role="group" aria-label={`Zoom of ${title}`}>
            <button
              type="button"
              class="quiet"
              aria-label="Zoom out"
              disabled={!zoomed}
              onClick={() => closer(2)}
            >
              −
            </button>
            <button type="button" class="quiet" aria-label="Zoom in" onClick={() => closer(0.5)}>
              +
            </button>
          </span>
          {zoomed && (
            <button type="button" class="quiet" onClick={() => showAll(together)}>
              Show all
            </button>
          )}
          <button type="button" class="quiet" aria-label={`Save ${title} as PNG`} onClick={png}>
            PNG
          </button>
          <button
            type="button"
            class="quiet"
            aria-label={`Save ${title} as CSV`}
            onClick={() => saveText(table(traces), `${filename}.csv`)}
          >
            CSV
          </button>
        </div>
      </figcaption>
      {hint && <p class="hint">{hint}</p>}
      <Plot
        drawing={drawing}
        log={log}
        height={height}
        format={format}
        together={together}
        label={`Chart of ${title}. ${spoken(traces, format)}`}
        onPlot={(made) => (plot.current = made)}
        onCursor={point}
        onZoom={setZoomed}
      />
      <Legend traces={traces} drawing={drawing} row={row} format={format} />
    </figure>
  );
}

/** Write the values as they came, never the smoothed ones; a band as its low and high edges. */
function table(traces: Trace[]): string {
  return csv(new Map(traces.flatMap(({ label, line }) => columnsOf(label, line))));
}

function columnsOf(label: string, line: Line): [string, Line][] {
  const { steps, low, high } = line;
  const columns: [string, Line][] = [[label, line]];
  if (low) columns.push([`${label}, low`, { steps, values: low }]);
  if (high) columns.push([`${label}, high`, { steps, values: high }]);
  return columns;
}

function spoken(traces: Trace[], format: (value: number) => string): string {
  return traces
    .map(({ label, line }) => {
      const value = last(line);
      return value === null
        ? `${label}: nothing yet.`
        : `${label}: ${format(value)} at step ${whole(line.steps.at(-1) ?? 0)}.`;
    })
    .join(" ");
}
