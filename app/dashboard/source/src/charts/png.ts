import type uPlot from "uplot";

import { colour } from "../lib/theme";
import { type Trace, hueOf } from "./traces";

/** Return a picture of a chart that stands by itself: a ground, a title and a legend around it. */
export function pngOf(plot: uPlot, title: string, traces: Trace[], names: string[]): Promise<Blob> {
  const { canvas: chart } = plot.ctx;
  const ratio = devicePixelRatio;
  const [pad, head, foot] = [16 * ratio, 44 * ratio, 36 * ratio];
  const canvas = document.createElement("canvas");
  canvas.width = chart.width + 2 * pad;
  canvas.height = chart.height + head + foot;
  const pen = canvas.getContext("2d")!;
  pen.fillStyle = colour("--surface");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(chart, pad, head);
  pen.fillStyle = colour("--ink");
  pen.font = `600 ${15 * ratio}px system-ui, sans-serif`;
  pen.fillText(title, pad, 28 * ratio);
  writeLegend(pen, traces, names, pad, canvas.height - 14 * ratio, ratio);
  return new Promise((resolve, reject) =>
    canvas.toBlob(
      (blob) => (blob ? resolve(blob) : reject(new Error("The picture cannot be made."))),
      "image/png",
    ),
  );
}

function writeLegend(
  pen: CanvasRenderingContext2D,
  traces: Trace[],
  names: string[],
  left: number,
  base: number,
  ratio: number,
): void {
  pen.font = `${12 * ratio}px system-ui, sans-serif`;
  let x = left;
  for (const [index, trace] of traces.entries()) {
    const name = names[index] ?? trace.label;
    pen.strokeStyle = hueOf(trace);
    pen.lineWidth = 2 * ratio;
    pen.setLineDash((trace.dash ?? []).map((length) => length * ratio));
    pen.beginPath();
    pen.moveTo(x, base - 4 * ratio);
    pen.lineTo(x + 18 * ratio, base - 4 * ratio);
    pen.stroke();
    pen.fillStyle = colour("--ink");
    pen.fillText(name, x + 24 * ratio, base);
    x += 44 * ratio + pen.measureText(name).width;
  }
}
