"""The package is put together from four folders; each one's sub-packages are found here."""

from setuptools import find_namespace_packages, setup

FOLDERS = {
    "runbook": "runbook",
    "runbook.env": "env",
    "runbook.steps": "steps",
    "runbook.templates": "templates",
}

setup(
    package_dir=FOLDERS,
    packages=[
        name
        for package, folder in FOLDERS.items()
        # Folders of data are packages too, for setuptools.
        for name in (
            package,
            *(
                f"{package}.{inner}"
                for inner in find_namespace_packages(folder, exclude=["*__pycache__*"])
            ),
        )
    ],
    package_data={"": ["**"]},
    exclude_package_data={"": ["__pycache__/*", "**/__pycache__/*"]},
)
