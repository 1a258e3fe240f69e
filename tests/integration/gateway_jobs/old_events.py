"""Webhook events as the first build kept them in SQLite: written by its own code, read out of its file."""

from __future__ import annotations

import base64
import sqlite3

BODIES = {
    ("job_old.0.start", "start"): """
        hKVldmVudKVzdGFydKJhdMtAAAAAAAAAAKNqb2LeAB6iaWSnam9iX29sZKdwcm9qZWN0p2RlZmF1bHSoZW5kcG9pbnSjYWRk
        o2FwaaZuYXRpdmWlc3RhdGWncnVubmluZ6hwcmlvcml0eaZub3JtYWyndmVyc2lvbsCmbWV0aG9kpFBPU1SkcGF0aKEvpmtl
        eV9pZKClaW5wdXSErGNvbnRlbnRfdHlwZbBhcHBsaWNhdGlvbi9qc29upGRhdGHEAKRibG9ioKRzaXplB6tmaW5nZXJwcmlu
        dKCnd2ViaG9va4KjdXJst2h0dHA6Ly8xMjcuMC4wLjE6OS9ob29rpmV2ZW50c5Olc3RhcnSmb3V0cHV0qWNvbXBsZXRlZLNl
        eGVjdXRpb25fdGltZW91dF9zy0CCwAAAAAAArG1heF9hdHRlbXB0cwOrcmV0ZW50aW9uX3PLQJwgAAAAAACrdHJhY2VwYXJl
        bnSgp2NvbnRleHSBoW4BqmNyZWF0ZWRfYXTLP/AAAAAAAACrZGVhZGxpbmVfYXTAqnN0YXJ0ZWRfYXTLQAAAAAAAAACrZmlu
        aXNoZWRfYXTAqGF0dGVtcHRzAaRsb3N0AKdyZXRyaWVkAKZvdXRwdXTApWVycm9ywKdyZWNlaXB0gKhwcm9ncmVzc8CmcmVh
        c29uoKZjaHVua3OQ
    """,
    ("job_old.0.1.output.0", "output"): """
        hKVldmVudKZvdXRwdXSiYXTLQdrAyyPYdVmjam9i3gAeomlkp2pvYl9vbGSncHJvamVjdKdkZWZhdWx0qGVuZHBvaW50o2Fk
        ZKNhcGmmbmF0aXZlpXN0YXRlp3J1bm5pbmeocHJpb3JpdHmmbm9ybWFsp3ZlcnNpb27Apm1ldGhvZKRQT1NUpHBhdGihL6Zr
        ZXlfaWSgpWlucHV0hKxjb250ZW50X3R5cGWwYXBwbGljYXRpb24vanNvbqRkYXRhxACkYmxvYqCkc2l6ZQerZmluZ2VycHJp
        bnSgp3dlYmhvb2uCo3VybLdodHRwOi8vMTI3LjAuMC4xOjkvaG9va6ZldmVudHOTpXN0YXJ0pm91dHB1dKljb21wbGV0ZWSz
        ZXhlY3V0aW9uX3RpbWVvdXRfc8tAgsAAAAAAAKxtYXhfYXR0ZW1wdHMDq3JldGVudGlvbl9zy0CcIAAAAAAAq3RyYWNlcGFy
        ZW50oKdjb250ZXh0gaFuAapjcmVhdGVkX2F0yz/wAAAAAAAAq2RlYWRsaW5lX2F0wKpzdGFydGVkX2F0y0AAAAAAAAAAq2Zp
        bmlzaGVkX2F0wKhhdHRlbXB0cwGkbG9zdACncmV0cmllZACmb3V0cHV0wKVlcnJvcsCncmVjZWlwdICocHJvZ3Jlc3PApnJl
        YXNvbqCmY2h1bmtzksQBMcQFInR3byI=
    """,
    ("job_old.0.completed", "completed"): """
        hKVldmVudKljb21wbGV0ZWSiYXTLQAgAAAAAAACjam9i3gAeomlkp2pvYl9vbGSncHJvamVjdKdkZWZhdWx0qGVuZHBvaW50
        o2FkZKNhcGmmbmF0aXZlpXN0YXRlqXN1Y2NlZWRlZKhwcmlvcml0eaZub3JtYWyndmVyc2lvbsCmbWV0aG9kpFBPU1SkcGF0
        aKEvpmtleV9pZKClaW5wdXSErGNvbnRlbnRfdHlwZbBhcHBsaWNhdGlvbi9qc29upGRhdGHEAKRibG9ioKRzaXplB6tmaW5n
        ZXJwcmludKCnd2ViaG9va4KjdXJst2h0dHA6Ly8xMjcuMC4wLjE6OS9ob29rpmV2ZW50c5Olc3RhcnSmb3V0cHV0qWNvbXBs
        ZXRlZLNleGVjdXRpb25fdGltZW91dF9zy0CCwAAAAAAArG1heF9hdHRlbXB0cwOrcmV0ZW50aW9uX3PLQJwgAAAAAACrdHJh
        Y2VwYXJlbnSgp2NvbnRleHSBoW4BqmNyZWF0ZWRfYXTLP/AAAAAAAACrZGVhZGxpbmVfYXTAqnN0YXJ0ZWRfYXTLQAAAAAAA
        AACrZmluaXNoZWRfYXTLQAgAAAAAAACoYXR0ZW1wdHMBpGxvc3QAp3JldHJpZWQApm91dHB1dISsY29udGVudF90eXBlsGFw
        cGxpY2F0aW9uL2pzb26kZGF0YcQJWzEsInR3byJdpGJsb2KgpHNpemUJpWVycm9ywKdyZWNlaXB0gKhwcm9ncmVzc8CmcmVh
        c29uoKZjaHVua3OQ
    """,
}
"""The rows' ``body`` in base64, by id and event; all of one job."""


def add_old_events(db: sqlite3.Connection, url: str) -> None:
    """Queue them for a receiver."""
    for (id, event), body in BODIES.items():
        db.execute(
            "INSERT INTO deliveries (id, job, project, event, url, body, created_at, next_at)"
            " VALUES (?, 'job_old', 'default', ?, ?, ?, 1.0, 2.0)",
            [id, event, url, base64.b64decode(body)],
        )
