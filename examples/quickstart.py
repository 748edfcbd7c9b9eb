"""The services in one process, with nothing configured: `python examples/quickstart.py`.

It starts a Valkey of its own, keeps its data in ./.counterseal, and ends the Valkey when it ends.
"""

import asyncio

from counterseal import Counterseal, JobContext, task


@task(name="email")
async def send_mail(context: JobContext, to: str) -> None:
    print(f"worker: mail to {to}, attempt {context.attempt}")


async def main() -> None:
    async with Counterseal.open(tasks=[send_mail]) as seal:
        await seal.cache.user_profiles.set("ada", {"name": "Ada Lovelace"})
        print("cache:", await seal.cache.user_profiles.get("ada"))
        await seal.cache.user_profiles.invalidate("ada")
        print("cache, after invalidate:", await seal.cache.user_profiles.get("ada"))

        made = await seal.sessions.create(user_id="ada", email="ada@example.com", user_agent="curl/8.14.1")
        session = await seal.sessions.get(made.session_id)
        print("session:", session.device if session else "gone")
        await seal.sessions.revoke(made.session_id)
        print("session, after revoke:", await seal.sessions.get(made.session_id))

        async with seal.worker():
            made = await seal.jobs.enqueue(send_mail, "ada@example.com")
            job = await seal.jobs.wait(made.id)
        print("job:", job.state if job else "gone")

        await seal.analytics.track_document_view("request-1", "ada", "example.com")
        print("analytics:", await seal.analytics.today())

        report = await seal.health.check()
        print("healthy:", report.healthy)


if __name__ == "__main__":
    asyncio.run(main())
