"""The container file: raybench with what the lock pins, run by a user who may change nothing."""

from string import Template

from cluster.values import Values

__all__ = ["APP", "HOME", "containerfile"]

APP = "/opt/raybench"
"""Where the repository's code is in the image."""

HOME = "/home/raybench"

_TEXT = Template("""\
# $note
#     docker build -f cluster/rendered/Containerfile -t $image .
# from the repository's root. torch's wheels bring CUDA; the node brings the driver.
FROM $base AS build
COPY cluster/locks/uv.txt /tmp/uv.txt
RUN python -m venv /tmp/uv && /tmp/uv/bin/pip install --no-cache-dir --require-hashes -r /tmp/uv.txt
RUN python -m venv --without-pip /opt/venv
WORKDIR $app
COPY pyproject.toml requirements.lock ./
# What pyproject.toml names at the lock's versions and hashes, wheels only: nothing is built.
RUN /tmp/uv/bin/uv pip install --no-cache --python /opt/venv/bin/python --compile-bytecode \\
    --require-hashes --only-binary :all: --requirement pyproject.toml --constraint requirements.lock
COPY README.md LICENSE ./
COPY raybench raybench
COPY jobs jobs
COPY cluster/run.sh cluster/run.sh
RUN /tmp/uv/bin/uv pip install --no-cache --python /opt/venv/bin/python --compile-bytecode \\
    --no-deps --no-build-isolation --editable . && python -m compileall -q raybench jobs

FROM $base
RUN groupadd --gid $uid raybench \\
    && useradd --uid $uid --gid $uid --home-dir $home --create-home raybench
COPY --from=build /opt/venv /opt/venv
COPY --from=build $app $app
# The driver's libraries: some device plugins mount them at this path, the others need no path.
ENV PATH=/opt/venv/bin:/usr/local/nvidia/bin:/usr/local/bin:/usr/bin:/bin \\
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \\
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \\
    PYTHONDONTWRITEBYTECODE=1 \\
    RAY_AUTH_MODE=token \\
    RAY_USAGE_STATS_ENABLED=0 \\
    HOME=$home
WORKDIR $home
USER $uid:$uid
CMD ["raybench", "doctor"]
""")


def containerfile(values: Values, note: str) -> str:
    """Return the text of the container file."""
    return _TEXT.substitute(
        note=note,
        base=values.image.base,
        image=f"{values.image.repository}:{values.image.tag or 'build'}",
        app=APP,
        home=HOME,
        uid=values.image.uid,
    )
