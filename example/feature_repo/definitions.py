"""The features of the example's customers, for `feast apply`. `example/build.py` applies and materialises them."""

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float64, Int64, Map, String

NEVER = timedelta(0)  # the features carry one date, and the example is to answer the same in any year

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
history = FileSource(name="history", path="../data/features.parquet", timestamp_field="event_timestamp")

shopping = FeatureView(
    name="customer",
    description="What customers bought.",
    entities=[customer],
    ttl=NEVER,
    source=history,
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="purchase_history", dtype=Array(String), description="The products, in the order of purchase."),
        Field(name="category_affinity", dtype=Map, description="For each category its share in the purchases."),
    ],
)
behavior = FeatureView(
    name="behavior",
    description="How customers pay.",
    entities=[customer],
    ttl=NEVER,
    source=history,
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="payment_history", dtype=Float64, description="The share of bills that were paid on time."),
    ],
)
