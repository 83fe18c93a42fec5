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
    """Grade one sample: string_check, and text_similarity by exact metrics."""
    start = time.perf_counter()
    grade = await asyncio.to_thread(
        service.run, body.grader, sample=body.model_sample, item=body.item
    )
    return grade_out(
        body.grader,
        reward=grade.reward,
        unknown_variable=grade.unknown_variable,
        no_json=grade.no_json,
        seconds=time.perf_counter() - start,
    )


@router.post("/validate", response_model=ValidatedOut, dependencies=[STREAM])
async def validate_grader(body: ValidateGrader, _: Caller) -> ValidatedOut:
    """Say whether a grader can run here."""
    return ValidatedOut(grader=await asyncio.to_thread(service.validate, body.grader))
