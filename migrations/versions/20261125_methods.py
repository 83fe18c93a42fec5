"""Jobs know which adapter they go on from, when they stop early and how sharpness is measured.

Revision ID: 5b1f0c2d9e47
Revises: c34de95f6c6a
"""

from alembic import op

revision = "5b1f0c2d9e47"
down_revision = "c34de95f6c6a"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Complete the specs of jobs that were submitted before."""
    op.execute(
        """
        UPDATE jobs SET spec = '{"task": "causal"}'::jsonb || spec
          || jsonb_build_object('resources', spec->'resources'
               || '{"zero_stage": null, "offload": null}'::jsonb)
          || jsonb_build_object('perturbation',
               '{"apn_cap": null, "rho_schedule": "constant"}'::jsonb || (spec->'perturbation'))
          || jsonb_build_object('evaluation', '{"sharpness": null}'::jsonb)
          || jsonb_build_object('peft', '{"lr_ratio": null, "from": null}'::jsonb || (spec->'peft'))
          || jsonb_build_object(
               'training', '{"early_stopping": null}'::jsonb || (spec->'training'))
        """
    )


def downgrade() -> None:
    """Take the new fields away again."""
    op.execute(
        """
        UPDATE jobs SET spec = spec - 'evaluation' - 'task'
          || jsonb_build_object('resources', ((spec->'resources')
               || '{"zero_stage": 0}'::jsonb) - 'offload')
          || jsonb_build_object('perturbation',
               (spec->'perturbation') - 'apn_cap' - 'rho_schedule')
          || jsonb_build_object('peft', (spec->'peft') - 'lr_ratio' - 'from')
          || jsonb_build_object('training', (spec->'training') - 'early_stopping')
        """
    )
