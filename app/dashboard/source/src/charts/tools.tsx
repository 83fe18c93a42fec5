import { useState } from "preact/hooks";

export interface LossView {
  log: boolean;
  weight: number;
  setLog: (log: boolean) => void;
  setWeight: (weight: number) => void;
}

const NAME = "basin.curves";

/** How losses are shown, kept from visit to visit. */
export function useLossView(): LossView {
  const [view, setView] = useState(kept);
  const change = (to: Partial<Kept>) => {
    const next = { ...view, ...to };
    localStorage.setItem(NAME, JSON.stringify(next));
    setView(next);
  };
  return { ...view, setLog: (log) => change({ log }), setWeight: (weight) => change({ weight }) };
}

export function LossTools({ view }: { view: LossView }) {
  return (
    <>
      <Smoothing view={view} />
      <LogAxis view={view} />
    </>
  );
}

function Smoothing({ view }: { view: LossView }) {
  return (
    <label class="slider">
      Smoothing
      <input
        type="range"
        min={0}
        max={0.98}
        step={0.02}
        value={view.weight}
        aria-valuetext={`${Math.round(view.weight * 100)} percent`}
        onInput={(event) => view.setWeight(Number(event.currentTarget.value))}
      />
      <output>{view.weight.toFixed(2)}</output>
    </label>
  );
}

export function LogAxis({ view }: { view: LossView }) {
  return (
    <label class="check">
      <input
        type="checkbox"
        checked={view.log}
        onChange={(event) => view.setLog(event.currentTarget.checked)}
      />
      Log axis
    </label>
  );
}

interface Kept {
  log: boolean;
  weight: number;
}

function kept(): Kept {
  const text = localStorage.getItem(NAME);
  return { log: false, weight: 0.6, ...(text ? (JSON.parse(text) as Partial<Kept>) : {}) };
}
