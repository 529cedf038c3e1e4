"""Where the example's parts lie, below its folder."""

from pathlib import Path

FOLDER = Path(__file__).parent
CONFIG = FOLDER / "config"
FEATURE_REPO = Path("feature_repo")

DATABASE = Path("data", "customers.db")
PARTNER = Path("data", "partner.db")
FEATURES = Path("data", "features.parquet")
REGISTRY = Path("data", "registry.db")
ONLINE_STORE = Path("data", "online_store.db")
CREDIT_MODEL = Path("models", "credit_risk")
LOAN_MODEL = Path("models", "loan_approval.onnx")
CREDIT_WEIGHTS = Path("models", "credit.json")
CHURN_MODEL = Path("models", "churn.json")
RECOMMENDER = Path("models", "recommender.json")
STAMP = Path("data", ".built")

PARTS = (
    *(DATABASE, PARTNER, FEATURES, REGISTRY, ONLINE_STORE),
    *(CREDIT_MODEL, CREDIT_WEIGHTS, LOAN_MODEL, CHURN_MODEL, RECOMMENDER),
)
"""What is built, and not committed."""
