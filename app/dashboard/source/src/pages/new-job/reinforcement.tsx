// What a policy is rewarded for, and how it learns from that.
import { EnvironmentSettings } from "./environment";
import { GraderSettings } from "./grader";
import { acts } from "./rewards";
import type { StepProps } from "./draft";
import { Setting } from "./setting";

export function Reinforcement(props: StepProps) {
  const acting = acts(props.draft);
  const bySteps = acting && props.draft.policy.algorithm === "gigpo";
  return (
    <>
      <p class="hint">
        {acting
          ? "The file holds episodes: the job learns from the rewards of what it does in an environment."
          : "The job learns from the rewards that a grader gives for what it answers."}
      </p>
      {acting ? <EnvironmentSettings {...props} /> : <GraderSettings {...props} />}
      <div class="grid">
        {acting && (
          <Setting
            {...props}
            group="policy"
            name="algorithm"
            label="Algorithm"
            standard="GRPO"
            options={[["gigpo", "GiGPO"]]}
            hint={bySteps ? "Compares steps too." : "Compares whole episodes."}
          />
        )}
        <Setting
          {...props}
          group="policy"
          name="group_size"
          label="Group size"
          standard="8"
          hint={acting ? "Tries of each episode." : "Answers to each prompt."}
        />
        <Setting
          {...props}
          group="policy"
          name="max_completion_tokens"
          label={acting ? "Longest action" : "Longest answer"}
          standard={acting ? "32" : "256"}
          hint="In tokens."
        />
        {bySteps && <StepSettings {...props} />}
      </div>
      <MoreSettings {...props} />
    </>
  );
}

/** What GiGPO compares steps by. */
function StepSettings(props: StepProps) {
  return (
    <>
      <Setting
        {...props}
        group="policy"
        name="step_discount"
        label="Step discount"
        standard="0.95"
        hint="Of rewards that come later."
      />
      <Setting
        {...props}
        group="policy"
        name="step_weight"
        label="Step weight"
        standard="1"
        hint="Of steps beside episodes."
      />
    </>
  );
}

function MoreSettings(props: StepProps) {
  return (
    <details>
      <summary>More about rewards</summary>
      <div class="grid">
        <Setting {...props} group="policy" name="temperature" label="Temperature" standard="1" />
        <Setting
          {...props}
          group="policy"
          name="kl"
          label="KL"
          standard="0.01"
          hint="Higher keeps closer to the start."
        />
        <Setting
          {...props}
          group="policy"
          name="normalization"
          label="Normalization"
          standard="std"
          options={[["none", "none"]]}
          hint="What differences in a group are divided by."
        />
        {acts(props.draft) && (
          <>
            <Setting
              {...props}
              group="environment"
              name="max_turns"
              label="Most turns"
              standard="30"
              hint="Actions of an episode."
            />
            <Setting
              {...props}
              group="environment"
              name="timeout_s"
              label="Patience"
              standard="60"
              hint="Seconds of an episode’s environment."
            />
          </>
        )}
      </div>
    </details>
  );
}
