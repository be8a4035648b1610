"""What the sandbox must not take from the shell; to be called before boto3 and moto are imported."""

import os


def forget_aws() -> None:
    """Forget what this shell has set for AWS: it is for the real one."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
