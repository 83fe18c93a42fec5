// What a model's answers are rewarded by.
import { AreaField, SelectField, TextField } from "../../ui/field";
import { type StepProps, errorAt } from "./draft";
import { graderTexts } from "./rewards";

const WHERE = "method.reinforcement.grader";
const TYPES: [string, string][] = [
  ["string_check", "Text check: it is the reference, or holds it"],
  ["number_match", "Number match: its last number is the reference’s"],
  ["text_similarity", "Text similarity: how much of the reference it has"],
  ["multi", "Several graders and a formula, as JSON"],
];
const OPERATIONS: [string, string][] = [
  ["ilike", "holds the reference, in any case"],
  ["like", "holds the reference"],
  ["eq", "is the reference"],
  ["ne", "is not the reference"],
];
const METRICS: [string, string][] = [
  ["rouge_l", "ROUGE-L: words in their order"],
  ["fuzzy_match", "fuzzy match: letters"],
  ["gleu", "GLEU: up to four words in a row"],
  ...[1, 2, 3, 4, 5].map((order): [string, string] => [`rouge_${order}`, `ROUGE-${order}`]),
];

export function GraderSettings({ draft, change, wrong }: Pick<StepProps, "draft" | "change" | "wrong">) {
  const texts = graderTexts(draft);
  const { type = "" } = texts;
  const tie = (name: string) => ({
    value: texts[name] ?? "",
    onChange: (text: string) => change({ grader: { ...draft.grader, [name]: text } }),
    error: errorAt(wrong, `${WHERE}.${name}`) ?? errorAt(wrong, `${WHERE}.${type}.${name}`),
  });
  return (
    <>
      <div class="pair">
        <SelectField label="Grader" options={TYPES} {...tie("type")} />
        {type === "string_check" && (
          <SelectField label="Rewarded when it" options={OPERATIONS} {...tie("operation")} />
        )}
        {type === "text_similarity" && (
          <SelectField label="Measured by" options={METRICS} {...tie("evaluation_metric")} />
        )}
        {type === "number_match" && (
          <TextField label="Tolerance" placeholder="0" numeric {...tie("tolerance")} />
        )}
      </div>
      {type === "multi" ? (
        <AreaField
          label="Graders and formula"
          rows={12}
          hint="calculate_output names the graders; what it comes to is the reward."
          {...tie("json")}
          error={wrong?.param?.startsWith(WHERE) ? wrong.message : undefined}
        />
      ) : (
        <div class="pair">
          <AreaField
            label="What is graded"
            rows={2}
            hint="sample.output_text is what the model answers."
            {...tie("input")}
          />
          <AreaField
            label="Reference"
            rows={2}
            hint={
              draft.format === "chat"
                ? "item is the row; what its last message says is hidden from the model."
                : "item is the row: any of its keys can be named."
            }
            {...tie("reference")}
          />
        </div>
      )}
    </>
  );
}
