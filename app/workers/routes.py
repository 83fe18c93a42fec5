"""/v1/workers"""

from fastapi import APIRouter

from app.paging import ListOut, list_out
from app.web import Caller, Tx
from app.workers import service
from app.workers.schemas import WorkerOut, worker_out

router = APIRouter(prefix="/v1/workers", tags=["workers"])


@router.get("", response_model=ListOut[WorkerOut])
async def list_workers(tx: Tx, caller: Caller) -> ListOut[WorkerOut]:
    """List the workers that are alive: their devices, what is free, what runs there."""
    nodes = await service.alive(tx)
    shown = [worker_out(node, organization_id=caller.organization_id) for node in nodes]
    return list_out(shown, has_more=False)
