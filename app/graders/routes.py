"""/v1/fine_tuning/alpha/graders"""

import asyncio
import time

from fastapi import APIRouter

from app.graders import service
from app.graders.schemas import (
    GradeOut,
    RunGrader,
    ValidatedOut,
    ValidateGrader,
    grade_out,
)
from app.web import STREAM, Caller

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["fine-tuning"])


@router.post("/run", response_model=GradeOut, dependencies=[STREAM])
async def run_grader(body: RunGrader, _: Caller) -> GradeOut:
    """Grade one sample by text, number or exact similarity, or by a formula over several."""
    start = time.perf_counter()
    grade = await asyncio.to_thread(
        service.grade, body.grader, sample=body.model_sample, item=body.item
    )
    return grade_out(
        body.grader,
        reward=grade.reward,
        sub_rewards=grade.sub_rewards,
        unknown_variable=grade.unknown_variable,
        no_json=grade.no_json,
        not_calculable=grade.not_calculable,
        seconds=time.perf_counter() - start,
    )


@router.post("/validate", response_model=ValidatedOut, dependencies=[STREAM])
async def validate_grader(body: ValidateGrader, _: Caller) -> ValidatedOut:
    """Say whether a grader can run here."""
    return ValidatedOut(grader=await asyncio.to_thread(service.validate, body.grader))
