"""/v1/environments"""

from fastapi import APIRouter

from app.environments.catalog import known
from app.environments.schemas import EnvironmentOut, environment_out
from app.paging import ListOut, list_out
from app.web import Caller, Tx
from app.workers import service as workers

router = APIRouter(prefix="/v1/environments", tags=["environments"])


@router.get("", response_model=ListOut[EnvironmentOut])
async def list_environments(tx: Tx, _: Caller) -> ListOut[EnvironmentOut]:
    """List what agents can learn in: the arguments of each, and which workers offer it."""
    nodes = await workers.alive(tx)
    return list_out([environment_out(kind, nodes) for kind in known().values()], has_more=False)
