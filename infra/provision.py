"""What the servers need before anyone uses them: the bucket, and MLflow's user `pipeline`.

Run again, it changes nothing but that user's password, to the one given."""

import argparse
import os
import sys
from collections.abc import Sequence

from blsp.errors import BlspError

PIPELINE_USER = "pipeline"  # records runs and registers models; reads what others made, and manages no users


def make_bucket() -> None:
    """Nothing; the bucket BLSP_BUCKET is there. Raises BlspError where the store refuses or does not answer."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = variable("BLSP_BUCKET")
    client = boto3.client("s3")
    try:
        client.head_bucket(Bucket=bucket)
    except BotoCoreError as error:
        raise BlspError(f"the S3 store does not answer: {error}") from error
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise BlspError(f"bucket {bucket}: {error}") from error
        try:
            client.create_bucket(Bucket=bucket)
        except client.exceptions.BucketAlreadyOwnedByYou:
            pass  # another was first
        except ClientError as refusal:
            raise BlspError(f"bucket {bucket} cannot be made: {refusal}") from refusal


def make_pipeline_user(server: str, admin_password: str, password: str) -> None:
    """Nothing; the MLflow at `server` has the user `pipeline` with this password. Asks as `admin`. Raises BlspError
    where MLflow refuses or does not answer."""
    import httpx

    user = {"username": PIPELINE_USER, "password": password}
    admin = ("admin", admin_password)
    try:
        with httpx.Client(base_url=f"{server}/api/2.0/mlflow/users", auth=admin, timeout=60) as client:
            found = client.get("get", params={"username": PIPELINE_USER})
            if found.status_code == httpx.codes.NOT_FOUND:
                done = client.post("create", json=user)
            else:
                done = client.patch("update-password", json=user) if found.is_success else found
    except httpx.TransportError as error:
        raise BlspError(f"MLflow at {server} does not answer: {error}") from error
    if not done.is_success:
        raise BlspError(f"MLflow at {server} refused (status {done.status_code}): {done.text[:500]}")


def variable(name: str) -> str:
    """The value of an environment variable. Raises BlspError where it is not set."""
    if value := os.environ.get(name):
        return value
    raise BlspError(f"{name} is not set; docs/services.md says what it is")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where bucket and user are there, 1 where not."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.provision",
        description=(
            "Make the bucket BLSP_BUCKET, and the user `pipeline` of the MLflow server at MLFLOW_TRACKING_URI, as its "
            "admin. Secrets come from the environment, under the names of infra/.env.example."
        ),
    )
    parser.parse_args(arguments)
    try:
        make_bucket()
        passwords = variable("MLFLOW_ADMIN_PASSWORD"), variable("MLFLOW_PIPELINE_PASSWORD")
        make_pipeline_user(variable("MLFLOW_TRACKING_URI"), *passwords)
    except BlspError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
