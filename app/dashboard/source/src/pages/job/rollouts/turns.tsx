import { count } from "../../../lib/format";
import { advantage, largestOf, reward, tint } from "../../../lib/rollouts";
import type { Rollout, Turn, Value } from "../../../lib/types";
import { Button } from "../../../ui/buttons";
import { Notice } from "../../../ui/notice";

interface Props {
  rollout: Rollout;
  group: Rollout[];
  /** Whether these are single answers to a prompt. */
  answers: boolean;
  /** The state whose turns are marked. */
  state: string | null;
  onMark: (state: string | null) => void;
  onOpen: (index: number) => void;
}

/** A rollout to read: what was seen, what was done, and what that was worth. */
export function Turns({ rollout, group, answers, state, onMark, onOpen }: Props) {
  return (
    <section class="turns" aria-label={`Rollout ${rollout.index} of step ${rollout.step}`}>
      <h3>
        {answers ? "Answer" : "Rollout"} #{rollout.index}: reward {reward(rollout.reward)}
      </h3>
      {rollout.failure !== null && (
        <Notice kind="warn" title="The environment broke it off">
          <p>{rollout.failure}</p>
        </Notice>
      )}
      <ol>
        {rollout.turns.map((turn, place) => (
          <li key={place} class={turn.state !== null && turn.state === state ? "same" : ""}>
            {!answers && <h4>Turn {place + 1}</h4>}
            <Said what={answers ? "Prompt" : "Observation"} text={turn.observation} />
            <Said
              what={answers ? "Completion" : turn.valid ? "Action" : "Invalid action"}
              text={turn.action}
              bad={!turn.valid}
            />
            <Worth turn={turn} group={group} />
            {(turn.shared ?? 1) > 1 && (
              <Shared
                turn={turn}
                group={group}
                marked={turn.state === state}
                onMark={onMark}
                onOpen={onOpen}
              />
            )}
          </li>
        ))}
      </ol>
    </section>
  );
}

function Said({ what, text, bad = false }: { what: string; text: string; bad?: boolean }) {
  return (
    <figure class={bad ? "said invalid" : "said"}>
      <figcaption class={bad ? "bad" : "muted"}>{what}</figcaption>
      <pre class="wrapped">{text}</pre>
    </figure>
  );
}

function Worth({ turn, group }: { turn: Turn; group: Rollout[] }) {
  const turns = group.flatMap((each) => each.turns);
  const known: [string, Value | null, (turn: Turn) => Value | null][] = [
    ["episode advantage", turn.episode_advantage, (each) => each.episode_advantage],
    ["step advantage", turn.step_advantage, (each) => each.step_advantage],
  ];
  return (
    <ul class="worth">
      <li>
        reward <b>{reward(turn.reward)}</b>
      </li>
      {known.map(
        ([name, value, of]) =>
          value !== null && (
            <li key={name} {...tint(value, largestOf(turns.map((each) => of(each) ?? 0)))}>
              {name} <b>{advantage(value)}</b>
            </li>
          ),
      )}
      {turn.returned !== null && (
        <li>
          discounted return <b>{reward(turn.returned)}</b>
        </li>
      )}
    </ul>
  );
}

interface SharedProps {
  turn: Turn;
  group: Rollout[];
  marked: boolean;
  onMark: (state: string | null) => void;
  onOpen: (index: number) => void;
}

/** The turns of the group that began in the same state: what the step advantage compares. */
function Shared({ turn, group, marked, onMark, onOpen }: SharedProps) {
  const same = group.flatMap((each) =>
    each.turns.flatMap((other, place) => (other.state === turn.state ? [{ each, other, place }] : [])),
  );
  return (
    <div class="shared">
      <button
        type="button"
        class="quiet"
        aria-pressed={marked}
        onClick={() => onMark(marked ? null : turn.state)}
      >
        {count(turn.shared ?? 0, "turn")} of the group began in this state
      </button>
      {marked && (
        <ul>
          {same.map(({ each, other, place }) => (
            <li key={`${each.index} ${place}`}>
              <Button kind="quiet" onClick={() => onOpen(each.index)}>
                #{each.index}, turn {place + 1}
              </Button>
              {other.step_advantage !== null && advantage(other.step_advantage)}
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}
