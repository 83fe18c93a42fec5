import { useState } from "preact/hooks";

import { count } from "../../../lib/format";
import { advantage, areAnswers, endingOf, largestOf, reward, tint, worth } from "../../../lib/rollouts";
import type { Rollout } from "../../../lib/types";
import { Turns } from "./turns";

/** The group of a step: a row for each rollout, a cell for each turn; one can be read. */
export function Group({ group }: { group: Rollout[] }) {
  const [opened, open] = useState<number | null>(null);
  const [state, mark] = useState<string | null>(null);
  const answers = areAnswers(group);
  const read = group.find(({ index }) => index === opened);
  const show = (index: number) => open(index === opened ? null : index);
  return (
    <>
      <ol class="rollout-group">
        {group.map((each) => (
          <li key={each.id} class={each === read ? "opened" : ""}>
            <Head rollout={each} group={group} opened={each === read} onOpen={() => show(each.index)} />
            {answers ? (
              <p class="answer">{each.turns[0]?.action}</p>
            ) : (
              <Cells rollout={each} group={group} state={state} onMark={mark} onOpen={open} />
            )}
          </li>
        ))}
      </ol>
      {!answers && <Key />}
      {read && (
        <Turns rollout={read} group={group} answers={answers} state={state} onMark={mark} onOpen={open} />
      )}
    </>
  );
}

interface HeadProps {
  rollout: Rollout;
  group: Rollout[];
  opened: boolean;
  onOpen: () => void;
}

function Head({ rollout, group, opened, onOpen }: HeadProps) {
  const rewards = largestOf(group.map((each) => each.reward));
  const share = rewards ? Math.max(0, Number(rollout.reward)) / rewards : 0;
  const ending = endingOf(rollout);
  const first = rollout.turns[0];
  return (
    <button type="button" aria-expanded={opened} onClick={onOpen}>
      <b>#{rollout.index}</b>
      <span>
        reward <b>{reward(rollout.reward)}</b>
        <span class="bar" aria-hidden="true">
          <span style={{ width: `${100 * (Number.isFinite(share) ? share : 0)}%` }} />
        </span>
      </span>
      <span class="sub">
        {first && `advantage ${advantage(first.episode_advantage)}`}
        {ending && ` · ${ending}`}
        {rollout.turns.length !== 1 && ` · ${count(rollout.turns.length, "turn")}`}
      </span>
    </button>
  );
}

interface CellsProps {
  rollout: Rollout;
  group: Rollout[];
  state: string | null;
  onMark: (state: string | null) => void;
  onOpen: (index: number) => void;
}

/** The turns at a glance, for the eye and the mouse; the same is told where the rollout is read. */
function Cells({ rollout, group, state, onMark, onOpen }: CellsProps) {
  const largest = largestOf(group.flatMap((each) => each.turns.map(worth)));
  return (
    <ol class="cells" aria-hidden="true">
      {rollout.turns.map((turn, place) => {
        const { class: sign, style } = tint(worth(turn), largest);
        const same = turn.state !== null && turn.state === state;
        return (
          <li
            key={place}
            class={`${sign} ${turn.valid ? "" : "invalid"} ${same ? "same" : ""}`}
            style={style}
            title={`turn ${place + 1}: ${advantage(worth(turn))}`}
            onMouseEnter={() => onMark(turn.state)}
            onClick={() => onOpen(rollout.index)}
          >
            {turn.valid ? SIGNS[sign] : "×"}
            {(turn.shared ?? 1) > 1 && <i>{turn.shared}</i>}
          </li>
        );
      })}
    </ol>
  );
}

const SIGNS: Record<string, string> = { up: "+", down: "−", even: "0" };

function Key() {
  return (
    <p class="hint" aria-hidden="true">
      A cell is a turn: <b>+</b> better than the others, <b>−</b> worse, <b>×</b> an invalid action; the small
      number says how many turns of the group began in the same state, and pointing at one shows which.
    </p>
  );
}
