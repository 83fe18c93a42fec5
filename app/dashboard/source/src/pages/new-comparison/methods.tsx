import { useEffect, useRef } from "preact/hooks";

import { Button } from "../../ui/buttons";
import type { Wrong } from "../new-job/draft";
import { type Method, another } from "./draft";
import { MethodRow } from "./method-row";

const FEWEST = 2;
const MOST = 16;

interface Props {
  methods: Method[];
  onChange: (methods: Method[]) => void;
  wrong: Wrong;
}

export function MethodsStep({ methods, onChange, wrong }: Props) {
  const box = useFollowingFocus(methods.length);
  const change = (index: number) => (to: Partial<Method>) =>
    onChange(methods.map((method, each) => (each === index ? { ...method, ...to } : method)));
  return (
    <fieldset class="card" ref={box}>
      <legend>3. Methods</legend>
      {methods.map((method, index) => (
        <MethodRow
          key={index}
          place={index + 1}
          method={method}
          change={change(index)}
          wrong={within(wrong, `methods.${index}.`)}
          kept={methods.length > FEWEST ? null : `A comparison has ${FEWEST} methods at least.`}
          onRemove={() => onChange(methods.filter((_, each) => each !== index))}
        />
      ))}
      <p>
        <Button
          refusal={methods.length < MOST ? null : `A comparison has ${MOST} methods at most.`}
          onClick={() => onChange([...methods, another(methods)])}
        >
          Add a method
        </Button>
      </p>
    </fieldset>
  );
}

/** Put the focus where something has changed: on the new method's name, or beside what went. */
function useFollowingFocus(length: number) {
  const box = useRef<HTMLFieldSetElement>(null);
  const before = useRef(length);
  useEffect(() => {
    const last = box.current?.querySelector(".method:last-of-type");
    if (length > before.current) last?.querySelector("input")?.focus();
    if (length < before.current) box.current?.querySelector<HTMLElement>(":scope > p > button")?.focus();
    before.current = length;
  }, [length]);
  return box;
}

/** Keep an error that is about something below a name, and name it from there. */
function within(wrong: Wrong, above: string): Wrong {
  if (!wrong?.param?.startsWith(above)) return null;
  return { param: wrong.param.slice(above.length), message: wrong.message };
}
