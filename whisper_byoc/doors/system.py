"""Health, readiness, version and metrics."""

import platform

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from whisper_byoc.doors.requests import service_of
from whisper_byoc.metrics import CONTENT_TYPE
from whisper_byoc.service import VERSION, Service


async def health(request: Request) -> JSONResponse:
    """200 as long as the process answers; the words are PyTrickle's."""
    service = service_of(request)
    return JSONResponse({"status": service.health})


async def ready(request: Request) -> JSONResponse:
    """200 only while new jobs are taken."""
    service = service_of(request)
    document = {"ready": service.ready, "status": service.health}
    if service.failure is not None:
        document["problem"] = str(service.failure)
    return JSONResponse(document, 200 if service.ready else 503)


async def version(request: Request) -> JSONResponse:
    """PyTrickle's keys and our own. app: what clients of the network ask a Live Runner for."""
    service = service_of(request)
    engine = service.engine
    return JSONResponse(
        {
            "name": "whisper-byoc",
            "version": VERSION,
            **_identity(service),
            "interfaces": service.settings.orchestrator.interfaces,
            "app": service.settings.app_id(service.model_id),
            "engine": "batched" if engine else "processor",
            "models": [
                {
                    "name": model.name,
                    "device": model.device,
                    "branch": model.branch,
                    "languages": sorted(model.languages),
                }
                for model in (engine.models.values() if engine else ())
            ],
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
    )


async def hardware_info(request: Request) -> JSONResponse:
    """As PyTrickle answers on a machine without a GPU, whatever there is."""
    return JSONResponse({**_identity(service_of(request)), "gpu_info": {}})


async def hardware_stats(request: Request) -> JSONResponse:
    return JSONResponse({**_identity(service_of(request)), "gpu_stats": {}})


def _identity(service: Service) -> dict[str, str]:
    return {
        "pipeline": service.settings.capability.pipeline,
        "model_id": service.model_id,
    }


async def metrics(request: Request) -> Response:
    service = service_of(request)
    return Response(service.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})


routes = [
    Route("/health", health),
    Route("/ready", ready),
    Route("/version", version),
    Route("/app-version", version),
]
operator_routes = [
    Route("/hardware/info", hardware_info),
    Route("/hardware/stats", hardware_stats),
    Route("/metrics", metrics),
]
